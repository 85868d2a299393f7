// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
)

// maxRunDir leaves room for the admin socket's name in a sockaddr_un, whose
// path has 108 bytes.
const maxRunDir = 80

// Validate reports what is wrong with the keys together; each by itself was
// right when it was read. Load has called it.
func (c *Config) Validate() error {
	v := validation{c: c}
	v.node()
	if len(c.RunDir) > maxRunDir {
		v.fail("runDir", "the path of a socket is bounded: 80 bytes at most", "%d bytes", len(c.RunDir))
	}
	v.ports()
	v.consul()
	v.identity()
	v.resolvers()
	seen := make(map[string]bool)
	for _, f := range c.MeshFiles() {
		if seen[f] {
			v.fail("sources.static.files", "each file once, without the configuration itself", "%s is named twice", f)
		}
		seen[f] = true
	}
	return joined(v.problems)
}

type validation struct {
	c        *Config
	problems yamlconf.Problems
}

func (v *validation) fail(key, allowed, found string, args ...any) {
	v.problems = append(v.problems, &yamlconf.Problem{
		File: v.c.place(key), Key: key, Found: fmt.Sprintf(found, args...), Allowed: allowed,
	})
}

func (v *validation) node() {
	n := &v.c.Node
	v.notVirtual("node.address", n.Address)
	v.notVirtual("node.addresses", n.Addresses...)
	if n.Locality.Zone != "" && n.Locality.Region == "" {
		v.fail("node.locality.zone", "node.locality.region with it", "a zone without its region")
	}
}

// ports: the node's listeners must not meet. The kernel keeps everybody else
// off the first five in all addresses, so the addresses don't tell them apart.
func (v *validation) ports() {
	l := &v.c.Listeners
	taken := make(map[uint16]string)
	for _, p := range []struct {
		key  string
		port uint16
	}{
		{"listeners.outbound", l.Outbound},
		{"listeners.inboundPlain", l.InboundPlain},
		{"listeners.inboundHBONE", l.InboundHBONE.Port()},
		{"listeners.inboundMTLS", l.InboundMTLS.Port()},
		{"listeners.dns", l.DNS},
		{"listeners.metrics", l.Metrics.Port()},
		{"listeners.readiness", l.Readiness.Port()},
	} {
		if p.port == 0 {
			continue // off
		}
		if other, ok := taken[p.port]; ok {
			v.fail(p.key, "a port of its own for each listener", "port %d is that of %s, too", p.port, other)
			continue
		}
		taken[p.port] = p.key
	}
}

func (v *validation) identity() {
	id := &v.c.Identity
	if id.LeafCache != leafcache.Off && id.Provider != ProviderConsul {
		v.fail("identity.leafCache", "identity.provider: consul with it, or off", "%s, and identity.provider %s has its keys on disk anyway", id.LeafCache, id.Provider)
	}
	switch id.Provider {
	case ProviderConsul:
		v.noFiles()
	case ProviderEmbedded:
		v.noFiles()
		if d := id.Default.ID; !d.IsZero() && d.TrustDomain() != v.c.Node.TrustDomain {
			v.fail("identity.default", "an identity of node.trustDomain", "%s, and the CA is for %s", d, v.c.Node.TrustDomain)
		}
		if id.Embedded.LeafTTL > id.Embedded.CATTL {
			v.fail("identity.embedded.leafTTL", "at most identity.embedded.caTTL",
				"leaves of %s would outlive their root of %s", formatDuration(id.Embedded.LeafTTL), formatDuration(id.Embedded.CATTL))
		}
	case ProviderFiles:
		if id.Files.Dir == "" && len(id.Files.Workloads) == 0 {
			v.fail("identity.provider", "identity.files.dir or identity.files.workloads with it", "files, and there are none")
		}
		if len(id.Files.Workloads) > 0 && id.Files.Dir == "" && id.Files.Bundle == "" {
			v.fail("identity.files.workloads", "identity.files.bundle beside it", "leaves without a trust bundle to verify peers")
		}
		v.fileLeaves()
	}
}

// noFiles: what a file holds is not used.
func (v *validation) noFiles() {
	files := &v.c.Identity.Files
	v.unused("identity.files.dir", files.Dir != "")
	v.unused("identity.files.workloads", len(files.Workloads) > 0)
	v.unused("identity.files.bundle", files.Bundle != "")
}

func (v *validation) unused(key string, set bool) {
	if set {
		v.fail(key, "identity.provider: files, or nothing here", "set, and identity.provider is %s", v.c.Identity.Provider)
	}
}

// namespaces: the agent lists the services of one, and those that name none are in
// it.
func (v *validation) namespaces(services []consul.Service) {
	const key = "sources.consul.services"
	own, seen := v.c.Consul.Namespace, make(map[string]bool)
	for i := range services {
		n := services[i].Name
		switch {
		case own != "" && n.Namespace != "" && n.Namespace != own:
			v.fail(key, "services of namespace "+own+", which consul.namespace says", "service %s in namespace %s", n.Name, n.Namespace)
		case own != "" && seen[n.Name]:
			v.fail(key, "each service once", "service %s is there twice: consul.namespace is %s", n.Name, own)
		}
		seen[n.Name] = true
	}
}

func (v *validation) consul() {
	if src := &v.c.Sources.Consul; src.Enabled {
		if v.c.Identity.Provider == ProviderEmbedded {
			v.fail("sources.consul.enabled", "identity.provider: consul with it", "true, and the CA of identity.provider embedded signs no identities of Consul's")
		}
		if src.Register && !v.c.Listeners.InboundMTLS.IsValid() {
			v.fail("sources.consul.register", "listeners.inboundMTLS with it, or false", "true, and no port for those who would dial it")
		}
		v.namespaces(src.Services)
	} else if len(src.Services) > 0 {
		v.fail("sources.consul.services", "sources.consul.enabled: true with it", "services, and the source is off")
	}
	s := &v.c.Consul
	if (s.CertFile == "") != (s.KeyFile == "") {
		v.fail("consul.certFile", "consul.certFile and consul.keyFile together", "one without the other")
	}
	if tls, err := consulagent.ParseAddress(s.Address); err != nil || tls {
		return // an address that is none is reported when it is read
	}
	for _, k := range []struct{ key, value string }{
		{"consul.caFile", s.CAFile},
		{"consul.certFile", s.CertFile},
		{"consul.serverName", s.ServerName},
	} {
		if k.value != "" {
			v.fail(k.key, "an address with https:// in consul.address", "set, and consul.address is %s", s.Address)
		}
	}
}

func (v *validation) fileLeaves() {
	seen := make(map[string]bool)
	for _, l := range v.c.Identity.Files.Workloads {
		if id := l.Identity.String(); seen[id] {
			v.fail("identity.files.workloads", "each identity once", "%s is named twice", id)
		} else {
			seen[id] = true
		}
	}
}

// resolvers: a node that asks itself for what it doesn't know never stops.
func (v *validation) resolvers() {
	n := &v.c.Node
	for _, u := range v.c.DNS.Upstreams {
		own := u.Addr().IsLoopback() || u.Addr() == n.Address || slices.Contains(n.Addresses, u.Addr())
		if own && u.Port() == v.c.Listeners.DNS {
			v.fail("dns.upstreams", "resolvers other than this node", "%s is the node's own (listeners.dns)", u)
		}
	}
}

func (v *validation) notVirtual(key string, addresses ...netip.Addr) {
	for _, a := range addresses {
		if a.IsValid() && (v.c.DNS.VirtualIPv4.Contains(a) || v.c.DNS.VirtualIPv6.Contains(a)) {
			v.fail(key, "an address outside dns.virtualIPv4 and dns.virtualIPv6", "%s lies among the virtual IPs", a)
		}
	}
}
