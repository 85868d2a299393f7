// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/dns"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

func (n *Node) startDNS(context.Context) (err error) {
	n.resolver, err = dns.New(dns.Options{
		Settings: dnsSettings(n.settingsFile()), Names: names{n}, Control: n.capture.Control,
		Metrics: dnsMetrics{n.metrics.DNS}, Logger: n.log, Client: n.asker,
	})
	return err
}

func dnsSettings(c *config.Config) dns.Settings {
	s := dns.Settings{
		Domain: c.DNS.Domain, VirtualIPs: virtualIPs(c), TTL: c.DNS.TTL, Upstreams: c.DNS.Upstreams,
	}
	if src := &c.Sources.Consul; src.Enabled && src.DNS.IsValid() {
		s.Zones = []dns.Zone{{Domain: src.Domain, Upstreams: []netip.AddrPort{src.DNS}}}
	}
	return s
}

// serveDNS gives the resolver sockets of a namespace to the DNS proxy, which
// owns them from then on.
func (n *Node) serveDNS(ns *namespace) error {
	scope := strconv.FormatUint(ns.cookie, 10)
	for _, l := range ns.listeners.dnsTCP {
		stop, err := n.resolver.ServeStream(scope, l)
		if err != nil {
			return err
		}
		ns.resolving = append(ns.resolving, stop)
	}
	for _, c := range ns.listeners.dnsUDP {
		stop, err := n.resolver.ServePacket(scope, c)
		if err != nil {
			return err
		}
		ns.resolving = append(ns.resolving, stop)
	}
	return nil
}

// names are the mesh's, for the DNS proxy.
type names struct{ node *Node }

// Host implements dns.Names. A namespace is a name without addresses: were it
// absent, resolvers would take the services below it for absent too (RFC 8020).
func (h names) Host(name string) ([]netip.Addr, bool) {
	v := h.node.views.load()
	if svc, ok := v.snapshot.Host(name); ok {
		return svc.VirtualIPs, true
	}
	namespace, ok := strings.CutSuffix(name, "."+v.snapshot.Domain())
	return nil, ok && v.namespaces[namespace]
}

// Reverse implements dns.Names.
func (h names) Reverse(vip netip.Addr) (string, bool) {
	s := h.node.views.load().snapshot
	dst, ok := s.Destination(mesh.Name{}, netip.AddrPortFrom(vip, 0))
	if !ok || dst.Kind != mesh.DestinationVirtualIP {
		return "", false
	}
	return hostOf(dst.Service.Name, s.Domain()), true
}

// hostOf is the canonical DNS name of a service.
func hostOf(n mesh.Name, domain string) string {
	if n.Canonical().Namespace == mesh.DefaultNamespace {
		return n.Name + "." + domain
	}
	return n.Name + "." + n.Namespace + "." + domain
}

// dnsMetrics counts under telemetry's names, which are the same.
type dnsMetrics struct{ to *telemetry.DNS }

// Query implements dns.Metrics.
func (m dnsMetrics) Query(r dns.Result) { m.to.Query(telemetry.DNSResult(r)) }

// Forwarded implements dns.Metrics.
func (m dnsMetrics) Forwarded(took time.Duration) { m.to.Forwarded(took) }
