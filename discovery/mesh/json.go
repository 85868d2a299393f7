// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Input returns what the snapshot was built from, Previous excepted. The
// caller must not change what it points to.
func (s *Snapshot) Input() BuildInput { return s.in }

// MarshalJSON writes the snapshot's BuildInput, which can be read back and
// built again.
func (s *Snapshot) MarshalJSON() ([]byte, error) { return json.Marshal(s.in) }

var (
	healthNames   = []string{"unknown", "healthy", "unhealthy", "draining"}
	selectorNames = []string{"", "cgroup", "cgroupPrefix", "unit", "user"}
	kindNames     = []string{"", "upstream", "virtualIP", "endpoint"}
)

func (h Health) String() string { return nameOf(healthNames, int(h)) }

// MarshalText implements encoding.TextMarshaler.
func (h Health) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Health) UnmarshalText(text []byte) error { return parseName(h, healthNames, "health", text) }

func (k SelectorKind) String() string { return nameOf(selectorNames, int(k)) }

// MarshalText implements encoding.TextMarshaler.
func (k SelectorKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *SelectorKind) UnmarshalText(text []byte) error {
	return parseName(k, selectorNames, "selector kind", text)
}

func (k DestinationKind) String() string { return nameOf(kindNames, int(k)) }

// MarshalText implements encoding.TextMarshaler.
func (k DestinationKind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("unknown (%d)", i)
}

func parseName[T ~uint8](to *T, names []string, what string, text []byte) error {
	i := slices.Index(names, string(text))
	if i < 0 {
		return fmt.Errorf("parse %s: %q is none of %q", what, text, names)
	}
	*to = T(i)
	return nil
}
