// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// query is a request with what matching needs worked out once.
type query struct {
	*Request
	source      netip.Addr // unmapped, without zone; invalid when unknown
	claimed     netip.Addr // likewise; invalid when source is the client's
	identified  bool
	peer        mesh.Name // Consul's service; zero for an identity of another form
	partition   string    // Consul's
	namespace   string
	trustDomain string
	workload    mesh.Name
}

func newQuery(r *Request) query {
	q := query{
		Request:    r,
		source:     plainAddr(r.Source.Addr()),
		claimed:    plainAddr(r.Claimed),
		identified: !r.Identity.IsZero(),
		workload:   fullName(r.Workload),
	}
	if q.identified {
		q.namespace = identityNamespace(r.Identity)
		q.peer, q.partition = identityService(r.Identity), identityPartition(r.Identity)
		q.trustDomain = r.Identity.TrustDomain().Name()
	}
	return q
}

// serves reports whether the request's destination serves the service.
func (q *query) serves(service mesh.Name) bool {
	for _, s := range q.Services {
		if fullName(s) == service {
			return true
		}
	}
	return false
}

// sourceRule is one entry of a policy's From. The zero value matches every
// source.
type sourceRule struct {
	identity    spiffeid.ID
	prefix      string
	service     mesh.Name
	partition   string // anyPartition for every one
	namespace   string
	trustDomain string
	anyIdentity bool
	cidr        netip.Prefix
}

func newSourceRule(s mesh.PolicySource) sourceRule {
	return sourceRule{
		identity:    s.Identity,
		prefix:      s.IdentityPrefix,
		service:     fullName(s.Service),
		partition:   partitionOf(s),
		namespace:   s.Namespace,
		trustDomain: strings.TrimPrefix(s.TrustDomain, "spiffe://"),
		anyIdentity: s.AnyIdentity,
		cidr:        plainPrefix(s.CIDR),
	}
}

// knows reports whether it is known that the client is in a network that source
// and claimed are in or not: of one whose address is only claimed it is where it
// makes no difference to believe that.
func (q *query) knows(source, claimed bool) bool {
	return q.source.IsValid() && (!q.claimed.IsValid() || source == claimed)
}

// namesIdentity reports whether the rule is about certain identities.
func (s *sourceRule) namesIdentity() bool {
	return !s.identity.IsZero() || s.prefix != "" || s.service != (mesh.Name{}) || s.partition != anyPartition || s.namespace != "" || s.trustDomain != ""
}

// matches reports whether the query's source is the rule's; unknown is what a
// fact counts as that the query does not have.
func (s *sourceRule) matches(q *query, unknown bool) bool {
	if s.cidr.IsValid() {
		within := s.cidr.Contains(q.source)
		known := q.knows(within, s.cidr.Contains(q.claimed))
		if known && !within || !known && !unknown {
			return false
		}
	}
	if !q.identified {
		return unknown || !s.anyIdentity && !s.namesIdentity()
	}
	return (s.identity.IsZero() || s.identity == q.Identity) &&
		(s.prefix == "" || hasIdentityPrefix(q.Identity.String(), s.prefix)) &&
		(s.service == (mesh.Name{}) || isService(q.peer, s.service)) &&
		isPartition(q.partition, s.partition) &&
		(s.namespace == "" || s.namespace == q.namespace) &&
		(s.trustDomain == "" || s.trustDomain == q.trustDomain)
}

// targetRule is one entry of a policy's To. The zero value matches every
// destination.
type targetRule struct {
	service, workload mesh.Name
	ports             []uint16
}

func newTargetRule(t mesh.PolicyTarget) targetRule {
	return targetRule{service: fullName(t.Service), workload: fullName(t.Workload), ports: t.Ports}
}

// matches reports whether the query goes to the target, port included.
func (t *targetRule) matches(q *query) bool {
	return (t.workload == mesh.Name{} || t.workload == q.workload) &&
		(t.service == mesh.Name{} || q.serves(t.service)) &&
		(len(t.ports) == 0 || slices.Contains(t.ports, q.Port))
}

// fullName makes names comparable: no namespace is the default one.
func fullName(n mesh.Name) mesh.Name {
	if n.Namespace == "" && n.Name != "" {
		n.Namespace = mesh.DefaultNamespace
	}
	return n
}

// hasIdentityPrefix reports whether prefix ends at a path segment of id.
func hasIdentityPrefix(id, prefix string) bool {
	return strings.HasPrefix(id, prefix) &&
		(len(id) == len(prefix) || strings.HasSuffix(prefix, "/") || id[len(prefix)] == '/')
}

// identityNamespace returns the namespace of "/ns/<namespace>[/...]", the form
// of Kubernetes, Consul and this mesh alike, or "".
func identityNamespace(id spiffeid.ID) string {
	rest, ok := strings.CutPrefix(id.Path(), "/ns/")
	if !ok {
		return ""
	}
	namespace, _, _ := strings.Cut(rest, "/")
	return namespace
}

// anyService is the name that matches every service of a namespace.
const anyService = "*"

func isService(peer, want mesh.Name) bool {
	return peer.Namespace == want.Namespace && peer.Name != "" && (peer.Name == want.Name || want.Name == anyService)
}

const (
	// anyPartition matches every admin partition.
	anyPartition = "*"
	// defaultPartition is that of identities that name none.
	defaultPartition = "default"
)

func partitionOf(s mesh.PolicySource) string {
	if s.Service != (mesh.Name{}) {
		return cmp.Or(s.Partition, defaultPartition)
	}
	return cmp.Or(s.Partition, anyPartition)
}

func isPartition(peer, want string) bool { return want == anyPartition || peer == want }

// identityPartition returns the admin partition of an identity of Consul's, which
// has "/ap/<partition>" before the rest unless that is the default one
// (agent/connect/uri_service.go).
func identityPartition(id spiffeid.ID) string {
	partition, _ := cutPartition(id)
	return partition
}

func cutPartition(id spiffeid.ID) (partition, rest string) {
	after, ok := strings.CutPrefix(id.Path(), "/ap/")
	partition, rest, more := strings.Cut(after, "/")
	if !ok || !more {
		return defaultPartition, id.Path()
	}
	return partition, "/" + rest
}

// identityService returns the service of an identity of Consul's form,
// "/ns/<namespace>/dc/<datacenter>/svc/<name>" in some partition, or the zero
// Name. The datacenter does not matter (agent/xds/rbac.go, makeSpiffePattern).
func identityService(id spiffeid.ID) mesh.Name {
	_, path := cutPartition(id)
	rest, ok := strings.CutPrefix(path, "/ns/")
	if !ok {
		return mesh.Name{}
	}
	namespace, rest, _ := strings.Cut(rest, "/")
	rest, ok = strings.CutPrefix(rest, "dc/")
	if !ok {
		return mesh.Name{}
	}
	_, name, ok := strings.Cut(rest, "/svc/")
	if !ok || name == "" || strings.Contains(name, "/") || strings.Contains(rest[:len(rest)-len("/svc/")-len(name)], "/") {
		return mesh.Name{}
	}
	return mesh.Name{Namespace: namespace, Name: name}
}

// plainAddr makes an IPv4-mapped address an IPv4 one and drops the zone, which
// netip.Prefix.Contains would not match.
func plainAddr(a netip.Addr) netip.Addr {
	return a.Unmap().WithZone("")
}

func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.IsValid() && p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	}
	return p.Masked()
}
