// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// raw is a value as it stands somewhere. It travels through viper as it is, so
// that what is wrong with it can be said with its place.
type raw struct {
	text   string
	origin string
	at     yamlconf.Value    // the place in the file; absent for variables and flags
	record map[string]string // of a list of records, instead of text
}

// kind says what YAML may have in a value's place.
type kind uint8

const (
	kindText  kind = iota // text; what looks like a number must be quoted
	kindAny               // text or number
	kindInt               // number
	kindWords             // one of a few words
	kindBool              // true or false
	kindTree              // a mapping, which set decodes itself
)

// value is a field of a Config: how it is read, checked and shown.
type value struct {
	// want says what is accepted, for people.
	want string
	kind kind
	// words are all that is accepted, for kindWords.
	words []string
	// least and most are the bounds, for kindInt.
	least, most int64
	// list: any number of items instead of one.
	list bool
	// fields are the keys of a list of records; nil for texts.
	fields []string
	// set takes one item, or one of a list after reset.
	set   func(raw) error
	reset func()
	// get returns the items, each as set would take it.
	get func() []any
	// at is the field itself, a pointer; take copies another Config's.
	at   any
	take func(at any)
}

// takeInto copies what a value's field points at.
func takeInto[T any](p *T) func(any) { return func(at any) { *p = *at.(*T) } }

// scalar is one value of type T.
func scalar[T any](p *T, want string, parse func(string) (T, error), format func(T) any, k kind) value {
	return value{
		want: want, kind: k,
		set: func(r raw) error {
			v, err := parse(r.text)
			if err == nil {
				*p = v
			}
			return err
		},
		reset: func() { var zero T; *p = zero },
		get:   func() []any { return []any{format(*p)} },
		at:    p, take: takeInto(p),
	}
}

// listOf is any number of values of type T.
func listOf[T any](p *[]T, want string, parse func(string) (T, error), format func(T) any, k kind) value {
	return value{
		want: want, kind: k, list: true,
		set: func(r raw) error {
			v, err := parse(r.text)
			if err == nil {
				*p = append(*p, v)
			}
			return err
		},
		reset: func() { *p = nil },
		get: func() []any {
			items := make([]any, len(*p))
			for i, v := range *p {
				items[i] = format(v)
			}
			return items
		},
		at: p, take: takeInto(p),
	}
}

func same[T any](v T) any { return v }

func asText[T fmt.Stringer](v T) any { return v.String() }

func text(p *string, want string, check func(string) error) value {
	return scalar(p, want, func(s string) (string, error) {
		if check != nil {
			return s, check(s)
		}
		return s, nil
	}, same, kindText)
}

func boolean(p *bool) value {
	return scalar(p, "true or false", func(s string) (bool, error) {
		if s != "true" && s != "false" {
			return false, wantError{}
		}
		return s == "true", nil
	}, same, kindBool)
}

// secret is a text that is not shown: a few digits of its digest tell whether it
// has changed.
func secret(p *string) value {
	v := text(p, "text", nil)
	v.get = func() []any {
		if *p == "" {
			return []any{""}
		}
		sum := sha256.Sum256([]byte(*p))
		return []any{fmt.Sprintf("(hidden, SHA-256 begins with %x)", sum[:4])}
	}
	return v
}

// wantError is for values that are of the right type and not allowed: what is
// wanted says it all.
type wantError struct{}

func (wantError) Error() string { return "not allowed" }

func enum[T ~string](p *T, allowed ...T) value {
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	v := scalar(p, strings.Join(names, ", "), func(s string) (T, error) {
		if !slices.Contains(allowed, T(s)) {
			return "", wantError{}
		}
		return T(s), nil
	}, func(v T) any { return string(v) }, kindWords)
	v.words = names
	return v
}

func port(p *uint16) value {
	v := scalar(p, "a number from 1 to 65535", parsePort, func(v uint16) any { return int(v) }, kindInt)
	v.least, v.most = 1, 65535
	return v
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, wantError{}
	}
	return uint16(n), nil
}

func number(p *int, least, most int) value {
	v := scalar(p, fmt.Sprintf("a number from %d to %d", least, most), func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, wantError{}
		}
		return n, nil
	}, same, kindInt)
	v.least, v.most = int64(least), int64(most)
	return v
}

func duration(p *time.Duration, least, most time.Duration) value {
	want := fmt.Sprintf("a duration with a unit, from %s to %s", formatDuration(least), formatDuration(most))
	return scalar(p, want, func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err != nil || d < least || d > most {
			return 0, wantError{}
		}
		return d, nil
	}, func(d time.Duration) any { return formatDuration(d) }, kindAny)
}

const day = 24 * time.Hour

// parseDuration is time.ParseDuration with days, which lifetimes of
// certificates are usually given in.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * day, err
	}
	return time.ParseDuration(s)
}

// formatDuration is the shortest text that parseDuration reads as d.
func formatDuration(d time.Duration) string {
	if d >= 2*day && d%day == 0 {
		return strconv.FormatInt(int64(d/day), 10) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// listen is an address with a port, or a port alone for all addresses.
func listen(p *netip.AddrPort) value {
	return scalar(p, "a port, or an address with a port such as 0.0.0.0:15008 or [::1]:15008", parseListen, formatListen, kindAny)
}

func parseListen(s string) (netip.AddrPort, error) {
	if n, err := parsePort(s); err == nil {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), n), nil
	}
	return parseAddrPort(s)
}

func parseAddrPort(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return netip.AddrPort{}, wantError{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

func formatListen(a netip.AddrPort) any {
	if a.Addr() == netip.IPv6Unspecified() {
		return int(a.Port())
	}
	return a.String()
}

// off is how a listener is switched off.
const off = "off"

func listenOrOff(p *netip.AddrPort) value {
	return scalar(p, `an address with a port such as 127.0.0.1:15020, a port, or "off"`,
		func(s string) (netip.AddrPort, error) {
			if s == off {
				return netip.AddrPort{}, nil
			}
			return parseListen(s)
		},
		func(a netip.AddrPort) any {
			if !a.IsValid() {
				return off
			}
			return formatListen(a)
		}, kindAny)
}

const wantAddress = "an IP address that other nodes can reach"

// parseAddress refuses what no other node could dial; loopback serves several
// nodes on one machine.
func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		return netip.Addr{}, wantError{}
	}
	return a.Unmap(), nil
}

func formatAddress(a netip.Addr) any {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func address(p *netip.Addr) value {
	return scalar(p, wantAddress, parseAddress, formatAddress, kindAny)
}

// resolver is an address whose port is 53 unless it says otherwise.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p != p.Masked() || p.Addr().Is4In6() {
		return netip.Prefix{}, wantError{}
	}
	return p, nil
}

func parseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 53), nil
	}
	return parseAddrPort(s)
}

func resolverOrOff(p *netip.AddrPort) value {
	return scalar(p, `an IP address, with a port if it isn't 53, or "off"`,
		func(s string) (netip.AddrPort, error) {
			if s == off {
				return netip.AddrPort{}, nil
			}
			return parseResolver(s)
		},
		func(a netip.AddrPort) any {
			if !a.IsValid() {
				return off
			}
			return formatResolver(a)
		}, kindAny)
}

func formatResolver(a netip.AddrPort) any {
	if a.Port() == 53 {
		return a.Addr().String()
	}
	return a.String()
}

func virtualIPs(p *netip.Prefix, want string, ok func(netip.Prefix) bool) value {
	return scalar(p, want, func(s string) (netip.Prefix, error) {
		n, err := netip.ParsePrefix(s)
		if err != nil || n != n.Masked() || !ok(n) {
			return netip.Prefix{}, wantError{}
		}
		return n, nil
	}, asText[netip.Prefix], kindAny)
}

func trustDomain(p *spiffeid.TrustDomain) value {
	return scalar(p, "a SPIFFE trust domain such as example.org: lower case letters, digits, dots, dashes, underscores",
		func(s string) (spiffeid.TrustDomain, error) {
			if strings.Contains(s, "/") {
				return spiffeid.TrustDomain{}, wantError{} // a whole ID would do for go-spiffe
			}
			td, err := spiffeid.TrustDomainFromString(s)
			if err != nil {
				return td, wantError{}
			}
			return td, nil
		}, asText[spiffeid.TrustDomain], kindAny)
}

// defaultIdentity is a SPIFFE ID of a workload, or a workload's name.
func defaultIdentity(p *DefaultIdentity) value {
	return scalar(p, "a workload such as web or team/web, or a SPIFFE ID with a path", parseDefaultIdentity, formatDefaultIdentity, kindText)
}

func parseDefaultIdentity(s string) (d DefaultIdentity, err error) {
	if strings.HasPrefix(s, spiffeScheme) {
		if d.ID, err = spiffeid.FromString(s); err != nil || d.ID.Path() == "" {
			return DefaultIdentity{}, wantError{}
		}
		return d, nil
	}
	d.Workload = mesh.ParseName(s)
	if !yamlconf.IsLabel(d.Workload.Namespace) || !yamlconf.IsLabel(d.Workload.Name) {
		return DefaultIdentity{}, wantError{}
	}
	return d, nil
}

const spiffeScheme = "spiffe://"

func formatDefaultIdentity(d DefaultIdentity) any {
	switch {
	case !d.ID.IsZero():
		return d.ID.String()
	case !d.Workload.IsZero():
		return d.Workload.String()
	}
	return ""
}

// absolute is a path that doesn't depend on where the node was started.
func absolute(p *string, want string) value {
	return text(p, want, func(s string) error {
		if !filepath.IsAbs(s) {
			return wantError{}
		}
		return nil
	})
}

// fileLeaves is a list of records.
func fileLeaves(p *[]FileLeaf) value {
	return value{
		want: "identity, cert and key", list: true, fields: []string{"identity", "cert", "key"},
		set: func(r raw) error {
			id, err := spiffeid.FromString(r.record["identity"])
			if err != nil {
				return fmt.Errorf("identity %q: %w", r.record["identity"], err)
			}
			*p = append(*p, FileLeaf{Identity: id, Cert: r.record["cert"], Key: r.record["key"]})
			return nil
		},
		reset: func() { *p = nil },
		get: func() []any {
			items := make([]any, len(*p))
			for i, l := range *p {
				items[i] = map[string]any{"identity": l.Identity.String(), "cert": l.Cert, "key": l.Key}
			}
			return items
		},
		at: p, take: takeInto(p),
	}
}
