// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"syscall"
	"time"

	miekg "github.com/miekg/dns"
)

// Names looks up what the mesh knows. Both methods are called for every query,
// from several goroutines.
type Names interface {
	// Host returns the virtual IPs that stand for a name, given in lower case
	// without the trailing dot. A name that is known and has no addresses
	// exists nevertheless; report names so that only have others below them,
	// like a namespace, or resolvers take the names below for absent as well
	// (RFC 8020).
	Host(name string) (vips []netip.Addr, found bool)
	// Reverse returns the name that a virtual IP stands for, without the
	// trailing dot.
	Reverse(vip netip.Addr) (name string, found bool)
}

// Result is how a query was answered.
type Result string

// The results.
const (
	ResultMesh      Result = "mesh"      // a mesh name, with its addresses
	ResultNoData    Result = "no_data"   // a mesh name that has no record of the type
	ResultNoName    Result = "no_name"   // within the mesh's domain, and unknown
	ResultForwarded Result = "forwarded" // answered by a resolver of the node
	ResultTimeout   Result = "timeout"   // no resolver of the node answered in time
	ResultFailed    Result = "failed"    // no resolver of the node could be asked
	ResultRefused   Result = "refused"   // malformed, or beyond a limit
)

// Metrics counts queries.
type Metrics interface {
	Query(Result)
	// Forwarded is told how long a resolver of the node took to answer.
	Forwarded(time.Duration)
}

// Settings are what a reload of the configuration may change.
type Settings struct {
	// Domain is the one that belongs to the mesh: names in it are never
	// forwarded. Empty means none.
	Domain string
	// VirtualIPs are the ranges whose reverse names are never forwarded.
	VirtualIPs []netip.Prefix
	// TTL of addresses, and NegativeTTL of answers without any; default 10
	// and 5 seconds.
	TTL, NegativeTTL time.Duration
	// Zones have resolvers of their own.
	Zones []Zone
	// Upstreams are the resolvers for everything else, asked in this order.
	// None means those of ResolvConf.
	Upstreams []netip.AddrPort
}

// Zone is a domain whose names are forwarded to certain resolvers, those of
// them that the mesh does not answer.
type Zone struct {
	Domain    string
	Upstreams []netip.AddrPort

	upstreams *upstreams
}

// Asker is a client's socket.
type Asker struct {
	// Scope is that of the listener, Network "udp" or "tcp".
	Scope, Network string
	// Address is the client's, Server the listener's.
	Address, Server netip.AddrPort
}

// String tells clients apart by their addresses.
func (a Asker) String() string {
	if a.Address.Addr().Unmap().IsLoopback() {
		return a.Scope + " " + a.Address.String()
	}
	return a.Scope + " " + a.Address.Addr().String()
}

// Options are what a Server is made of.
type Options struct {
	Settings
	Names Names
	// ResolvConf is read again whenever it has changed; default
	// /etc/resolv.conf.
	ResolvConf string
	// Control is called with each socket to a resolver before it connects, as
	// net.Dialer.Control. Without it, queries of a captured process would
	// come back.
	Control func(network, address string, c syscall.RawConn) error
	// MaxForwarded bounds the queries that wait for resolvers, altogether and
	// per client; default 1024 and 128. Those beyond are answered SERVFAIL.
	MaxForwarded, MaxForwardedPerClient int
	// MaxConnections bounds the TCP connections of clients, altogether and
	// per client; default 512 and 64. Those beyond are closed.
	MaxConnections, MaxConnectionsPerClient int
	// Client names who asks, for the limits. It is called for each query that
	// has to be forwarded and for each connection. By default it is the
	// address, on loopback together with the port, since all of a node's
	// workloads share 127.0.0.1.
	Client func(Asker) string
	// Metrics may be nil.
	Metrics Metrics
	// Logger may be nil.
	Logger *slog.Logger
	// Now may be nil.
	Now func() time.Time
}

func (s *Settings) complete() error {
	if _, ok := miekg.IsDomainName(s.Domain); !ok {
		return fmt.Errorf("set DNS domain: %q is not a domain name", s.Domain)
	}
	if s.Domain != "" {
		s.Domain = miekg.CanonicalName(s.Domain)
	}
	s.Zones = slices.Clone(s.Zones)
	for i := range s.Zones {
		z := &s.Zones[i]
		if _, ok := miekg.IsDomainName(z.Domain); !ok || z.Domain == "" || len(z.Upstreams) == 0 {
			return fmt.Errorf("set DNS zone %q: want a domain name and its resolvers", z.Domain)
		}
		z.Domain = miekg.CanonicalName(z.Domain)
		z.upstreams = fixed(z.Upstreams)
	}
	orElse(&s.TTL, 10*time.Second)
	orElse(&s.NegativeTTL, 5*time.Second)
	return nil
}

// zone returns the resolvers of the zone that a name is in; nil: those for
// everything else.
func (s *Settings) zone(name string) *upstreams {
	for i := range s.Zones {
		if miekg.IsSubDomain(s.Zones[i].Domain, name) {
			return s.Zones[i].upstreams
		}
	}
	return nil
}

func (o *Options) complete() {
	orElse(&o.ResolvConf, "/etc/resolv.conf")
	orElse(&o.MaxForwarded, 1024)
	orElse(&o.MaxForwardedPerClient, 128)
	orElse(&o.MaxConnections, 512)
	orElse(&o.MaxConnectionsPerClient, 64)
	if o.Client == nil {
		o.Client = Asker.String
	}
	if o.Metrics == nil {
		o.Metrics = noMetrics{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

func orElse[T comparable](v *T, fallback T) {
	var zero T
	if *v == zero {
		*v = fallback
	}
}

type noMetrics struct{}

func (noMetrics) Query(Result)            {}
func (noMetrics) Forwarded(time.Duration) {}
