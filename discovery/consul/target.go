// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// targetKey is a set of instances in the catalog: what a health query names.
// Several targets of chains may have one, under different server names.
type targetKey struct {
	service, namespace, partition, datacenter string
	filter                                    string
}

func (t *chainTarget) key() targetKey {
	return targetKey{t.Service, t.Namespace, t.Partition, t.Datacenter, t.Subset.Filter}
}

func (k targetKey) String() string {
	s := k.service
	if k.namespace != "" && k.namespace != mesh.DefaultNamespace {
		s = k.namespace + "/" + s
	}
	if k.filter != "" {
		s += " (" + k.filter + ")"
	}
	return s + " in " + k.datacenter
}

// standard is the namespace and the partition of everything where Consul has
// none, and of most where it has some.
const standard = "default"

// serviceID is the identity of a service (agent/connect/uri_service.go).
func serviceID(td spiffeid.TrustDomain, partition, namespace, datacenter, service string) (spiffeid.ID, error) {
	namespace = cmp.Or(namespace, standard)
	if partition != "" && partition != standard {
		return spiffeid.FromSegments(td, "ap", partition, "ns", namespace, "dc", datacenter, "svc", service)
	}
	return spiffeid.FromSegments(td, "ns", namespace, "dc", datacenter, "svc", service)
}

// refused says why a target is not dialled, or nothing. Those that are
// reached by gateways or peering are never dialled directly: their identities
// are another cluster's, or only a gateway knows the way.
func (t *chainTarget) refused(home location) string {
	switch {
	case t.Peer != "":
		return "it is a service of cluster peer " + t.Peer + ", which meshproxy does not speak to"
	case t.External:
		return "it is outside this Consul cluster"
	case cmp.Or(t.Partition, standard) != home.partition:
		return "it is in partition " + t.Partition + ", which only a mesh gateway reaches"
	case t.Datacenter != home.datacenter && t.MeshGateway.through():
		return "datacenter " + t.Datacenter + " is reached by mesh gateways (mode " + t.MeshGateway.Mode + ")"
	}
	return ""
}

// location is where this node's agent is.
type location struct{ node, datacenter, partition string }
