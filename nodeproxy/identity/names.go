// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"maps"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Names is a Local over a fixed set of identities. It is immutable.
type Names struct {
	byName   map[string]spiffeid.ID
	fallback spiffeid.ID
}

var _ Local = (*Names)(nil)

// NewNames makes the names of the identities. Clients that send no name get
// fallback, or, if that is zero, the only identity when there is just one.
func NewNames(ids []spiffeid.ID, fallback spiffeid.ID) *Names {
	n := &Names{byName: make(map[string]spiffeid.ID, len(ids)), fallback: fallback}
	for _, id := range ids {
		n.byName[ServerName(id)] = id
	}
	if fallback.IsZero() && len(n.byName) == 1 {
		n.fallback = ids[0]
	}
	return n
}

// Identities are all that Local may return.
func (n *Names) Identities() []spiffeid.ID {
	ids := slices.Collect(maps.Values(n.byName))
	if !n.fallback.IsZero() && !slices.Contains(ids, n.fallback) {
		ids = append(ids, n.fallback)
	}
	return ids
}

// Local finds an identity by its server name.
func (n *Names) Local(serverName string) (spiffeid.ID, bool) {
	if serverName == "" {
		return n.fallback, !n.fallback.IsZero()
	}
	id, ok := n.byName[serverName]
	return id, ok
}
