// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// defaultPrecedence is that of the policy that ends each list. Consul's own
// begin at 1 (structs.Intention.UpdatePrecedence).
const defaultPrecedence = -1

// policies are the intentions about a local service, of precedence as Consul
// has it, and its default. unknown says that the intentions could not be read:
// then nobody may enter.
func (x *translation) policies(n mesh.Name, list []intention, defaultAction mesh.Action, unknown bool) (out []*mesh.Policy, warnings []string) {
	to := []mesh.PolicyTarget{{Workload: n}}
	for i := range list {
		ix := &list[i]
		allows := ix.Action == string(mesh.ActionAllow) && !ix.Conditional
		if ix.SourcePeer != "" || ix.SourceSamenessGroup != "" && allows {
			// A peer's clients cannot prove who they are to this node, so it says
			// nothing about anybody who can. Who is in a sameness group is not
			// known: all of that name are denied what it is denied.
			warnings = append(warnings, fmt.Sprintf("intention of %s for %s is left out: sources of cluster peers and sameness groups are unknown here", ix.sourceText(), n))
			continue
		}
		p := &mesh.Policy{
			Name:       mesh.Name{Namespace: n.Namespace, Name: fmt.Sprintf("intention %s->%s", ix.sourceText(), n.Name)},
			Action:     mesh.ActionDeny,
			Precedence: ix.Precedence,
			From:       []mesh.PolicySource{x.source(ix)},
			To:         to,
		}
		if allows {
			p.Action = mesh.ActionAllow
		}
		if ix.Conditional {
			// A connection shows no requests: what may enter on conditions
			// about them may not enter (agent/xds/rbac.go does the same for
			// protocol tcp).
			p.Name.Name += " (about requests)"
		}
		out = append(out, p)
	}
	p := &mesh.Policy{
		Name:       mesh.Name{Namespace: n.Namespace, Name: "intention default->" + n.Name},
		Action:     defaultAction,
		Precedence: defaultPrecedence, To: to,
	}
	if unknown {
		p.Name.Name, p.Action = "intentions unknown->"+n.Name, mesh.ActionDeny
	}
	return append(out, p), warnings
}

// ignorant reports whether the intentions for a local service are unknown: not
// asked for yet, or not for this node's token.
func (r *run) ignorant(n mesh.Name) bool {
	return !slices.Contains(r.answered, n) || r.denied[queryTo] != "" || r.unreadable[n]
}

func (ix *intention) sourceText() string {
	s := mesh.Name{Namespace: cmp.Or(ix.SourceNS, standard), Name: ix.SourceName}.String()
	switch {
	case ix.SourcePeer != "":
		s += " of peer " + ix.SourcePeer
	case ix.SourceSamenessGroup != "":
		s += " of sameness group " + ix.SourceSamenessGroup
	case cmp.Or(ix.SourcePartition, standard) != standard:
		s += " of partition " + ix.SourcePartition
	}
	return s
}

// source says whom an intention is about. Without a partition that is one of the
// node's own, whose services are in it.
func (x *translation) source(ix *intention) mesh.PolicySource {
	s := mesh.PolicySource{TrustDomain: x.trustDomain.Name(), Partition: cmp.Or(ix.SourcePartition, x.home.partition)}
	if ix.SourceSamenessGroup != "" {
		s.Partition = wildcard
	}
	if ns := cmp.Or(ix.SourceNS, standard); ns == wildcard {
		s.AnyIdentity = true
	} else {
		s.Service = mesh.Name{Namespace: ns, Name: ix.SourceName}
		if s.Partition == standard {
			s.Partition = "" // a service's is
		}
	}
	return s
}

// permits reports whether the intentions of a source let it dial the
// destination, some requests at least (state.intentionTopologyTxn).
func permits(list []intention, destination mesh.Name, defaultAction mesh.Action) bool {
	best := -1
	for i := range list {
		ix := &list[i]
		if ns := cmp.Or(ix.DestinationNS, standard); ns != destination.Namespace && ns != wildcard {
			continue
		}
		if ix.DestinationName != destination.Name && ix.DestinationName != wildcard {
			continue
		}
		if best < 0 || ix.Precedence > list[best].Precedence {
			best = i
		}
	}
	if best < 0 {
		return defaultAction == mesh.ActionAllow
	}
	return list[best].Conditional || list[best].Action == string(mesh.ActionAllow)
}
