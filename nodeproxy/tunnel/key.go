// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Key says which streams may share a connection: those of one source identity
// to one peer that proves one of the same identities.
type Key struct {
	Source       spiffeid.ID
	Destinations Identities
	Addr         netip.AddrPort
	// ServerName is sent as SNI; empty sends none.
	ServerName string
}

// Identities is a set of identities that can be compared and used in a map.
type Identities struct{ list string }

// IdentitiesOf makes a set. A set of one costs no allocation.
func IdentitiesOf(ids ...spiffeid.ID) Identities {
	if len(ids) == 1 {
		return Identities{ids[0].String()}
	}
	s := make([]string, 0, len(ids))
	for _, id := range ids {
		s = append(s, id.String())
	}
	slices.Sort(s)
	// A SPIFFE ID has no spaces.
	return Identities{strings.Join(slices.Compact(s), " ")}
}

// All returns the members, sorted.
func (i Identities) All() []spiffeid.ID {
	var ids []spiffeid.ID
	for s := range strings.FieldsSeq(i.list) {
		ids = append(ids, spiffeid.RequireFromString(s)) // it came from one
	}
	return ids
}

// String lists the members, separated by spaces.
func (i Identities) String() string { return i.list }
