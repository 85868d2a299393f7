// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SNI is a server name as Consul's sidecars send it. It names a service
// wherever it runs, and optionally a subset of its instances.
type SNI struct {
	Subset, Service, Namespace string
	Partition                  string // empty stands for the default one
	Datacenter                 string
	TrustDomain                string
}

// maxSNI bounds a server name as DNS does; TLS itself would take 64 KiB.
const maxSNI = 255

// ParseSNI reads "[subset.]service.namespace.datacenter.internal.<trust domain>"
// and, for partitions other than the default one,
// "[subset.]service.namespace.partition.datacenter.internal-v1.<trust domain>"
// (Consul, agent/connect/sni.go). A service whose name has a dot cannot be told
// from one with a subset, and is taken for that.
func ParseSNI(name string) (SNI, bool) {
	if len(name) > maxSNI {
		return SNI{}, false
	}
	labels := strings.Split(name, ".")
	if slices.Contains(labels, "") {
		return SNI{}, false
	}
	at := slices.IndexFunc(labels[min(3, len(labels)):], func(l string) bool { return l == "internal" || l == "internal-v1" }) + 3
	if at < 3 || at+1 >= len(labels) {
		return SNI{}, false
	}
	s := SNI{TrustDomain: strings.Join(labels[at+1:], "."), Datacenter: labels[at-1]}
	front := labels[:at-1]
	if labels[at] == "internal-v1" {
		s.Partition = front[len(front)-1]
		front = front[:len(front)-1]
	}
	switch len(front) {
	case 2:
		s.Service, s.Namespace = front[0], front[1]
	case 3:
		s.Subset, s.Service, s.Namespace = front[0], front[1], front[2]
	default:
		return SNI{}, false
	}
	return s, true
}

// String is the server name.
func (s SNI) String() string {
	labels := make([]string, 0, 7)
	if s.Subset != "" {
		labels = append(labels, s.Subset)
	}
	labels = append(labels, s.Service, s.Namespace)
	kind := "internal"
	if s.Partition != "" {
		labels, kind = append(labels, s.Partition), "internal-v1"
	}
	return strings.Join(append(labels, s.Datacenter, kind, s.TrustDomain), ".")
}

// identity is the path of the SPIFFE ID that Consul gives the service, with its
// trust domain (Consul, agent/connect/uri_service.go).
func (s SNI) identity() string {
	id := s.TrustDomain
	if s.Partition != "" {
		id += "/ap/" + s.Partition
	}
	return strings.ToLower(id + "/ns/" + s.Namespace + "/dc/" + s.Datacenter + "/svc/" + s.Service)
}

// incoming is an index of what a mutual TLS connection without a CONNECT may be
// meant for.
type incoming struct {
	byIdentity map[string]spiffeid.ID // by SNI.identity, which has no case
	targets    map[spiffeid.ID][]Target
	byPort     map[uint16]spiffeid.ID
}

// ServerName returns the identity of the workload of this node that a server
// name in Consul's form stands for. Names are compared without case, as in DNS.
func (s *Snapshot) ServerName(name string) (spiffeid.ID, bool) {
	sni, ok := ParseSNI(name)
	if !ok {
		return spiffeid.ID{}, false
	}
	id, ok := s.node.incoming.byIdentity[sni.identity()]
	return id, ok
}

// MTLSPort returns the identity of the workload that has the port for itself.
func (s *Snapshot) MTLSPort(port uint16) (spiffeid.ID, bool) {
	id, ok := s.node.incoming.byPort[port]
	return id, ok
}

// Incoming returns where a mutual TLS connection to a workload's identity goes:
// the endpoints on this node, best first, of workloads with that identity. On a
// workload's own port it is that workload only. The service that the identity
// names, as Consul's do, comes before others of the workload. The caller must
// not change the slice.
func (s *Snapshot) Incoming(id spiffeid.ID, port uint16) []Target {
	all := s.node.incoming.targets[id]
	if _, own := s.node.incoming.byPort[port]; !own {
		return all
	}
	var list []Target
	for _, t := range all {
		if t.Workload.MTLSPort == port {
			list = append(list, t)
		}
	}
	return list
}

func indexIncoming(workloads []*Workload, local map[addrKey][]Target) incoming {
	in := incoming{
		byIdentity: make(map[string]spiffeid.ID), targets: make(map[spiffeid.ID][]Target), byPort: make(map[uint16]spiffeid.ID),
	}
	for _, w := range workloads {
		if w.Identity.IsZero() {
			continue
		}
		in.byIdentity[strings.ToLower(w.Identity.TrustDomain().Name()+w.Identity.Path())] = w.Identity
		if _, taken := in.byPort[w.MTLSPort]; w.MTLSPort != 0 && !taken {
			in.byPort[w.MTLSPort] = w.Identity
		}
	}
	for _, targets := range local {
		for _, t := range targets {
			if t.Workload != nil && !t.Workload.Identity.IsZero() {
				in.targets[t.Workload.Identity] = append(in.targets[t.Workload.Identity], t)
			}
		}
	}
	for id, targets := range in.targets {
		slices.SortFunc(targets, func(x, y Target) int {
			return cmp.Or(cmp.Compare(namedBy(y, id), namedBy(x, id)), x.Service.Compare(y.Service.Name),
				cmp.Compare(x.PortIndex, y.PortIndex), CompareEndpoints(x.Endpoint, y.Endpoint))
		})
	}
	return in
}

// namedBy is 1 for the service that an identity names last, as in
// "/ns/default/dc/dc1/svc/web".
func namedBy(t Target, id spiffeid.ID) int {
	path := id.Path()
	if strings.EqualFold(path[strings.LastIndexByte(path, '/')+1:], t.Service.Name.Name) {
		return 1
	}
	return 0
}
