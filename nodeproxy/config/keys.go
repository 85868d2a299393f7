// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
)

// key is a row of the table of keys.
type key struct {
	name string
	// standard is the default, in YAML's words; lists are separated by commas.
	standard string
	doc      string
	// restart: a change takes effect after a restart only.
	restart bool
	field   func(*Config) value
}

// HostName stands for the first label of the host's name, node.name's default.
const HostName = "(the host's name)"

const year = 365 * day

// table has every key, in the order of the reference. Durations' and sizes'
// bounds keep typing errors out, such as a lifetime of seconds that was meant
// in hours; they are no recommendations.
var table = []key{
	{
		"node.name", HostName, "Name of this node in the mesh.", true,
		func(c *Config) value {
			return text(&c.Node.Name, "a DNS label: a-z, 0-9 and -, 63 at most, with - neither first nor last", checkName)
		},
	},
	{
		"node.address", "", "Address where other nodes reach this one. Needed as soon as there are other nodes.", true,
		func(c *Config) value { return address(&c.Node.Address) },
	},
	{
		"node.addresses", "", "Further addresses of this node.", true,
		func(c *Config) value {
			return listOf(&c.Node.Addresses, wantAddress, parseAddress, formatAddress, kindAny)
		},
	},
	{
		"node.locality.region", "", "Region of this node; endpoints of the same one are preferred.", true,
		func(c *Config) value { return text(&c.Node.Locality.Region, "text", nil) },
	},
	{
		"node.locality.zone", "", "Zone of this node within its region; endpoints of the same one come first.", true,
		func(c *Config) value { return text(&c.Node.Locality.Zone, "text", nil) },
	},
	{
		"node.trustDomain", "mesh.internal", "SPIFFE trust domain of the identities of this node's workloads. With identity.provider consul it is learned; what is set here is the only one to be accepted then.", true,
		func(c *Config) value { return trustDomain(&c.Node.TrustDomain) },
	},

	{
		"cgroup.root", CgroupAuto, "cgroup2 directory within which workloads are captured. auto: the whole hierarchy, wherever it is mounted.", true,
		func(c *Config) value {
			return text(&c.Cgroup.Root, "auto, or an absolute path", func(s string) error {
				if s != CgroupAuto && !strings.HasPrefix(s, "/") {
					return wantError{}
				}
				return nil
			})
		},
	},
	{
		"bpf.fs", "/sys/fs/bpf", "Where a bpf file system is mounted; programs and maps are pinned there. At /sys/fs/bpf one is mounted if there is none.", true,
		func(c *Config) value { return absolute(&c.BPF.FS, "an absolute path") },
	},
	{
		"bpf.instance", "default", "Tells several nodes on one machine apart; part of the path of the pins.", true,
		func(c *Config) value {
			return text(&c.BPF.Instance, "letters, digits, dashes and underscores, 64 at most", checkInstance)
		},
	},
	{
		"bpf.maxFlows", "65536", "Most captured connections between their connect and the proxy's accept.", true,
		func(c *Config) value { return number(&c.BPF.MaxFlows, 1024, 1<<24) },
	},
	{
		"bpf.proxyTimeout", "3s", "How long after the proxy's last sign of life the kernel counts it as away, if it hangs; a proxy that was killed is away at once. More is for machines that may stand still for seconds.", true,
		func(c *Config) value { return duration(&c.BPF.ProxyTimeout, time.Second, time.Hour) },
	},
	{
		"splicing", string(SplicingOff), "auto: connections between workloads of this node go without the proxy, where policy needs nothing of it, and are spliced in the kernel, where a test at start finds it safe. off: they take the way of the proxy.", false,
		func(c *Config) value { return enum(&c.Splicing, SplicingOff, SplicingAuto) },
	},
	{
		"spliceHops", string(SplicingOff), "auto: connections between the applications of this node and the proxy are spliced in the kernel as well, under the same test. off: they are ordinary TCP over loopback.", false,
		func(c *Config) value { return enum(&c.SpliceHops, SplicingOff, SplicingAuto) },
	},
	{
		"stateDir", "/var/lib/meshproxy", "What outlives a restart: the embedded CA, the last snapshot, the virtual IPs.", true,
		func(c *Config) value { return absolute(&c.StateDir, "an absolute path") },
	},
	{
		"runDir", "/run/meshproxy", "What doesn't: the admin socket.", true,
		func(c *Config) value { return absolute(&c.RunDir, "an absolute path of 80 bytes at most") },
	},
	{
		"netnsHelper", "/run/meshproxy-netns.sock", "Socket of the helper that opens sockets in workloads' network namespaces, where the node may not enter them itself.", true,
		func(c *Config) value { return absolute(&c.NetNSHelper, "an absolute path") },
	},

	{
		"listeners.outbound", "15001", "Port on loopback, in each network namespace with workloads, that captured connections go to.", true,
		func(c *Config) value { return port(&c.Listeners.Outbound) },
	},
	{
		"listeners.inboundPlain", "15006", "Port that plaintext connections to permissive workloads are steered to.", true,
		func(c *Config) value { return port(&c.Listeners.InboundPlain) },
	},
	{
		"listeners.inboundHBONE", "15008", "Where other nodes' tunnels arrive: a port on all addresses, or an address with a port.", true,
		func(c *Config) value { return listen(&c.Listeners.InboundHBONE) },
	},
	{
		"listeners.inboundMTLS", off, "Where mutual TLS connections for one stream each arrive, as Consul's sidecars open them (20000 by custom). off: nowhere.", true,
		func(c *Config) value { return listenOrOff(&c.Listeners.InboundMTLS) },
	},
	{
		"listeners.forwardedFrom", "", "Networks of the other nodes, whose proxies are believed when they say for which client they open a stream; CIDR rules and the application see that address. From elsewhere it is the tunnel's own address that counts. Empty: the application sees what a peer says that has proven an identity, and CIDR rules take it for a claim: one that allows wants both addresses in its network, one that denies either.", false,
		func(c *Config) value {
			return listOf(&c.Listeners.ForwardedFrom, "a network such as 10.0.0.0/8, with no bits set beyond its length", parseNetwork, func(p netip.Prefix) any { return p.String() }, kindText)
		},
	},
	{
		"listeners.dns", "15053", "Port on loopback, UDP and TCP, that workloads' DNS queries are sent to.", true,
		func(c *Config) value { return port(&c.Listeners.DNS) },
	},
	{
		"listeners.metrics", "127.0.0.1:15020", "Where Prometheus reads /metrics. off: nowhere.", true,
		func(c *Config) value { return listenOrOff(&c.Listeners.Metrics) },
	},
	{
		"listeners.readiness", "127.0.0.1:15021", "Where probes ask /healthz/ready and /healthz/live. off: nowhere.", true,
		func(c *Config) value { return listenOrOff(&c.Listeners.Readiness) },
	},

	{
		"consul.address", consulagent.DefaultAddress, "Consul agent of this node, for identity.provider consul and the source consul: a host and port, with https:// before it for TLS, or unix:// and the path of a socket.", true,
		func(c *Config) value {
			return text(&c.Consul.Address, "a host with a port, such as 127.0.0.1:8500 or https://localhost:8501, or unix:///path", func(s string) error {
				if _, err := consulagent.ParseAddress(s); err != nil {
					return wantError{}
				}
				return nil
			})
		},
	},
	{
		"consul.token", "", "ACL token for the agent. Better in a file, which wins.", true,
		func(c *Config) value { return secret(&c.Consul.Token) },
	},
	{
		"consul.tokenFile", "", "File with the ACL token; it is read again when it changes.", true,
		func(c *Config) value { return text(&c.Consul.TokenFile, "a path", nil) },
	},
	{
		"consul.caFile", "", "File with the roots that vouch for the agent's TLS certificate. Empty: those of the system.", true,
		func(c *Config) value { return text(&c.Consul.CAFile, "a path", nil) },
	},
	{
		"consul.certFile", "", "File with a certificate to show to the agent, where it verifies clients.", true,
		func(c *Config) value { return text(&c.Consul.CertFile, "a path", nil) },
	},
	{
		"consul.keyFile", "", "File with the key of consul.certFile.", true,
		func(c *Config) value { return text(&c.Consul.KeyFile, "a path", nil) },
	},
	{
		"consul.serverName", "", "Name in the agent's TLS certificate, where it isn't the host of consul.address.", true,
		func(c *Config) value { return text(&c.Consul.ServerName, "text", nil) },
	},
	{
		"consul.datacenter", "", "Datacenter that is asked. Empty: the agent's.", true,
		func(c *Config) value { return text(&c.Consul.Datacenter, "text", nil) },
	},
	{
		"consul.namespace", "", "Namespace that is asked; Consul Enterprise only. Empty: that of the token.", true,
		func(c *Config) value { return text(&c.Consul.Namespace, "text", nil) },
	},
	{
		"consul.partition", "", "Admin partition that is asked; Consul Enterprise only. Empty: the agent's.", true,
		func(c *Config) value { return text(&c.Consul.Partition, "text", nil) },
	},

	{
		"identity.provider", string(ProviderEmbedded), "Where leaves and the trust bundle come from: embedded, a CA in a directory; files that something else renews; consul, the Connect CA of Consul.", true,
		func(c *Config) value {
			return enum(&c.Identity.Provider, ProviderEmbedded, ProviderFiles, ProviderConsul)
		},
	},
	{
		"identity.default", "", "Whom clients of tunnels meet that send no server name (SNI), as those of ztunnel: a workload of this node, or a SPIFFE ID. Empty: the workload, if the node has just one; else nobody.", false,
		func(c *Config) value { return defaultIdentity(&c.Identity.Default) },
	},
	{
		"identity.expiredGrace", "1m", "Tunnels one of whose leaves has expired take no new connections; after this time the open ones are closed. 0s: at once.", true,
		func(c *Config) value { return duration(&c.Identity.ExpiredGrace, 0, year) },
	},
	{
		"identity.leafCache", string(leafcache.Off), "Whether leaves, with their private keys, are kept in stateDir, so that a machine that boots while Consul is away has them: off; sealed by systemd-creds with the machine's secret (host), its TPM (tpm2), or both; auto: with what there is.", true,
		func(c *Config) value {
			return enum(&c.Identity.LeafCache, leafcache.Off, leafcache.Auto, leafcache.WithHost, leafcache.WithTPM, leafcache.WithHostTPM)
		},
	},
	{
		"identity.embedded.dir", "", "Directory of the CA; nodes of one mesh have a copy each. Empty: ca in stateDir.", true,
		func(c *Config) value { return text(&c.Identity.Embedded.Dir, "a path", nil) },
	},
	{
		"identity.embedded.leafTTL", "24h", "Lifetime of leaves; they are renewed when half of it is over. At most what the CA was made with, which counts where this is not set.", true,
		func(c *Config) value { return duration(&c.Identity.Embedded.LeafTTL, time.Minute, 90*day) },
	},
	{
		"identity.embedded.caTTL", "3650d", "Lifetime of a root that ca init or ca rotate makes.", true,
		func(c *Config) value { return duration(&c.Identity.Embedded.CATTL, time.Hour, 50*year) },
	},
	{
		"identity.files.dir", "", "Directory with a leaf for each workload; it is watched.", true,
		func(c *Config) value { return text(&c.Identity.Files.Dir, "a path", nil) },
	},
	{
		"identity.files.workloads", "", "Leaves by identity, each with the files of its certificates and its key; they are watched.", true,
		func(c *Config) value { return fileLeaves(&c.Identity.Files.Workloads) },
	},
	{
		"identity.files.bundle", "", "File with the roots of the trust bundle; it is watched.", true,
		func(c *Config) value { return text(&c.Identity.Files.Bundle, "a path", nil) },
	},

	{
		"sources.static.files", "", "Files with nodes, services, workloads, policies; they are watched. Relative paths start at the configuration's directory.", false,
		func(c *Config) value {
			return listOf(&c.Sources.StaticFiles, "a path", parsePath, same, kindText)
		},
	},
	{
		"sources.consul.enabled", "false", "Whether the services of this node's Consul agent are its workloads, and the services that they may reach those of the mesh.", true,
		func(c *Config) value { return boolean(&c.Sources.Consul.Enabled) },
	},
	{
		"sources.consul.nodeName", "", "What Consul calls this node. Empty: what its agent says.", true,
		func(c *Config) value { return text(&c.Sources.Consul.NodeName, "text", nil) },
	},
	{
		"sources.consul.upstreams", string(consul.ReachPermitted), "What workloads can dial: permitted, every service that intentions permit one of them; explicit, the upstreams of their registrations and of sources.consul.services.", false,
		func(c *Config) value {
			return enum(&c.Sources.Consul.Reach, consul.ReachPermitted, consul.ReachExplicit)
		},
	},
	{
		"sources.consul.defaultIntentions", string(IntentionsAgent), "What happens where no intention decides: allow, deny, or agent, what Consul has configured for it.", false,
		func(c *Config) value {
			return enum(&c.Sources.Consul.Intentions, IntentionsAgent, IntentionsAllow, IntentionsDeny)
		},
	},
	{
		"sources.consul.register", "true", "Whether the node registers itself with the agent as the proxy of each service here.", true,
		func(c *Config) value { return boolean(&c.Sources.Consul.Register) },
	},
	{
		"sources.consul.dns", "127.0.0.1:8600", "Where the agent answers DNS queries about its domain that are not the mesh's. off: they go where all others go.", false,
		func(c *Config) value { return resolverOrOff(&c.Sources.Consul.DNS) },
	},
	{
		"sources.consul.domain", consul.DefaultDomain, "Domain of Consul's DNS, as `domain` in the agents' configuration: what is asked for below it and is not the mesh's goes to sources.consul.dns.", true,
		func(c *Config) value {
			return text(&c.Sources.Consul.Domain, "a DNS domain without a dot at its end, in lower case", checkDomain)
		},
	},
	{
		"sources.consul.services", "", "What Consul does not say about services here: the processes of one, its explicit upstreams, a port of its own for clients without SNI; which are left out of the mesh; and services that the node registers with the agent itself.", false,
		func(c *Config) value { return consulServices(&c.Sources.Consul.Services) },
	},

	{
		"defaults.inbound", string(mesh.InboundStrict), "What may connect to a workload: strict, mTLS only; permissive, also plaintext, under policy; off, not captured.", false,
		func(c *Config) value {
			return enum(&c.Defaults.Inbound, mesh.InboundStrict, mesh.InboundPermissive, mesh.InboundOff)
		},
	},
	{
		"defaults.inboundLocal", string(mesh.Allow), "Whether processes of this node that are no workload may connect to workloads.", false,
		func(c *Config) value { return enum(&c.Defaults.InboundLocal, mesh.Allow, mesh.Deny) },
	},
	{
		"defaults.egress", string(mesh.EgressPassthrough), "What happens to destinations outside the mesh: passthrough, left alone; registered-only, refused.", false,
		func(c *Config) value {
			return enum(&c.Defaults.Egress, mesh.EgressPassthrough, mesh.EgressRegisteredOnly)
		},
	},
	{
		"defaults.onProxyDown", string(mesh.ProxyDownRefuse), "What happens to connections that need the proxy while it is away: refuse at once, or direct, without the mesh's protection.", false,
		func(c *Config) value {
			return enum(&c.Defaults.OnProxyDown, mesh.ProxyDownRefuse, mesh.ProxyDownDirect)
		},
	},
	{
		"defaults.connectTimeout", "5s", "Longest wait for an endpoint.", false,
		func(c *Config) value { return duration(&c.Defaults.ConnectTimeout, time.Millisecond, 5*time.Minute) },
	},
	{
		"defaults.idleTimeout", "24h", "Connections on which nothing moves for so long are closed. 0s: never.", false,
		func(c *Config) value { return duration(&c.Defaults.IdleTimeout, 0, year) },
	},
	{
		"defaults.maxConnectionsPerWorkload", "16384", "Most proxied connections of one workload, inbound and outbound together.", false,
		func(c *Config) value { return number(&c.Defaults.MaxConnectionsPerWorkload, 1, 1<<24) },
	},

	{
		"dns.domain", "mesh.internal", "DNS domain of the services: web.mesh.internal.", true,
		func(c *Config) value {
			return text(&c.DNS.Domain, "a DNS domain without a dot at its end, in lower case", checkDomain)
		},
	},
	{
		"dns.virtualIPv4", "240.240.0.0/16", "Where virtual IPs of services that have none are taken from.", true,
		func(c *Config) value {
			return virtualIPs(&c.DNS.VirtualIPv4, "an IPv4 network of 8 to 28 bits, with no bits set beyond them", func(p netip.Prefix) bool {
				return p.Addr().Is4() && p.Bits() >= 8 && p.Bits() <= 28
			})
		},
	},
	{
		"dns.virtualIPv6", "2001:2::/48", "The same for IPv6.", true,
		func(c *Config) value {
			return virtualIPs(&c.DNS.VirtualIPv6, "an IPv6 network of 16 to 112 bits, with no bits set beyond them", func(p netip.Prefix) bool {
				return p.Addr().Is6() && !p.Addr().Is4In6() && p.Bits() >= 16 && p.Bits() <= 112
			})
		},
	},
	{
		"dns.upstreams", "", "Resolvers for names outside the mesh. Empty: those of /etc/resolv.conf.", false,
		func(c *Config) value {
			return listOf(&c.DNS.Upstreams, "an IP address, with a port if it isn't 53", parseResolver, formatResolver, kindAny)
		},
	},
	{
		"dns.ttl", "10s", "How long a workload may keep an answer for a name of the mesh.", false,
		func(c *Config) value { return duration(&c.DNS.TTL, 0, day) },
	},

	{
		"log.level", "info", "Least level of the log.", false,
		func(c *Config) value { return enum(&c.Log.Level, "debug", "info", "warn", "error") },
	},
	{
		"log.format", "text", "Format of the log.", true,
		func(c *Config) value { return enum(&c.Log.Format, "text", "json") },
	},
	{
		"log.access", string(AccessText), "Format of the access log.", true,
		func(c *Config) value { return enum(&c.Log.Access, AccessOff, AccessText, AccessJSON) },
	},
	{
		"log.accessEntries", string(EntriesProblems), "What the access log has: problems, connections that were refused or ended early; all, each connection when it ends.", true,
		func(c *Config) value { return enum(&c.Log.AccessEntries, EntriesProblems, EntriesAll) },
	},

	{
		"drainTimeout", "30s", "How long open connections may go on when the node stops, or another process takes over.", false,
		func(c *Config) value { return duration(&c.DrainTimeout, 0, day) },
	},
	{
		"upgradeTimeout", "20s", "How long a new process may take until it can take over; then this one goes on.", false,
		func(c *Config) value { return duration(&c.UpgradeTimeout, time.Second, time.Hour) },
	},
	{
		"restartTimeout", "5s", "How long connections wait for the next process after the node has stopped; then workloads are refused, or go direct.", false,
		func(c *Config) value { return duration(&c.RestartTimeout, 0, time.Hour) },
	},
}

func checkName(s string) error {
	if !yamlconf.IsLabel(s) {
		return wantError{}
	}
	return nil
}

func checkInstance(s string) error {
	if s == "" || len(s) > 64 || strings.Trim(s, letters+digits+"-_") != "" {
		return wantError{}
	}
	return nil
}

func checkDomain(s string) error {
	if s == "" || len(s) > 253 {
		return wantError{}
	}
	for label := range strings.SplitSeq(s, ".") {
		if !yamlconf.IsLabel(label) {
			return wantError{}
		}
	}
	return nil
}

func parsePath(s string) (string, error) {
	if s == "" {
		return "", wantError{}
	}
	return s, nil
}

const (
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits  = "0123456789"
)
