// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/sha256"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
)

// Config is a node's configuration, complete and valid. It is read-only once
// Load has returned it.
type Config struct {
	Node         Node
	Cgroup       Cgroup
	BPF          BPF
	Splicing     Splicing
	SpliceHops   Splicing
	StateDir     string
	RunDir       string
	NetNSHelper  string
	Listeners    Listeners
	Consul       consulagent.Settings
	Identity     Identity
	Sources      Sources
	Defaults     Defaults
	DNS          DNS
	Log          Log
	DrainTimeout time.Duration
	// UpgradeTimeout is how long a new process may take to be ready.
	UpgradeTimeout time.Duration
	// RestartTimeout is how long connections wait for the process after a stop.
	RestartTimeout time.Duration

	// File is where it was read; empty when there was no file.
	File string
	// InlineMesh: the file has sections of the mesh, too.
	InlineMesh bool

	origins map[string]string // by key: where it was set
	digest  digest            // of the file
}

type digest [sha256.Size]byte

// Node is who this node is.
type Node struct {
	Name      string
	Address   netip.Addr
	Addresses []netip.Addr
	Locality  mesh.Locality
	// TrustDomain is zero when it is to be learned from Consul.
	TrustDomain spiffeid.TrustDomain
}

// Cgroup says where workloads are looked for.
type Cgroup struct {
	// Root is a directory in a cgroup2 file system, or CgroupAuto.
	Root string
}

// CgroupAuto finds the cgroup2 mount.
const CgroupAuto = "auto"

// Splicing says whether connections between workloads of this node go without
// the proxy.
type Splicing string

// The values of splicing.
const (
	SplicingOff Splicing = "off"
	// SplicingAuto: where policy allows, and spliced where the self-test finds
	// that it is safe.
	SplicingAuto Splicing = "auto"
)

// BPF says where the state in the kernel is kept.
type BPF struct {
	FS       string
	Instance string
	MaxFlows int
	// ProxyTimeout is how long a proxy that hangs counts as alive.
	ProxyTimeout time.Duration
}

// Listeners are the proxy's sockets. A port alone means all addresses of the
// node, or of loopback, as the listener's key says.
type Listeners struct {
	Outbound     uint16
	InboundPlain uint16
	InboundHBONE netip.AddrPort
	InboundMTLS  netip.AddrPort // invalid when it is off
	DNS          uint16
	// ForwardedFrom is empty when no peer's word is proof.
	ForwardedFrom []netip.Prefix
	// Metrics and Readiness are invalid when they are off.
	Metrics, Readiness netip.AddrPort
}

// Provider names an identity provider.
type Provider string

// The identity providers.
const (
	ProviderEmbedded Provider = "embedded"
	ProviderFiles    Provider = "files"
	ProviderConsul   Provider = "consul"
)

// Identity says where leaves and the trust bundle come from.
type Identity struct {
	Provider Provider
	// Default is shown to clients of tunnels that ask for nobody by name.
	Default DefaultIdentity
	// ExpiredGrace is how long connections outlive the leaves that they were
	// made with.
	ExpiredGrace time.Duration
	// LeafCache is how leaves are kept on disk.
	LeafCache leafcache.Seal
	Embedded  Embedded
	Files     Files
}

// DefaultIdentity is given as it is or as that of a workload; zero is none.
type DefaultIdentity struct {
	ID       spiffeid.ID
	Workload mesh.Name
}

// Embedded is a CA in a directory.
type Embedded struct {
	Dir            string
	LeafTTL, CATTL time.Duration
}

// Files are leaves and a trust bundle that something else renews.
type Files struct {
	Dir       string
	Workloads []FileLeaf
	Bundle    string
}

// FileLeaf is the leaf of one identity.
type FileLeaf struct {
	Identity  spiffeid.ID
	Cert, Key string
}

// Sources are the sources of discovery.
type Sources struct {
	// StaticFiles are absolute, or relative to the working directory.
	StaticFiles []string
	Consul      ConsulSource
}

// Defaults are those of the workloads.
type Defaults struct {
	Inbound        mesh.InboundMode
	InboundLocal   mesh.Allowance
	Egress         mesh.EgressMode
	OnProxyDown    mesh.ProxyDownMode
	ConnectTimeout time.Duration
	// IdleTimeout 0 means never.
	IdleTimeout               time.Duration
	MaxConnectionsPerWorkload int
}

// DNS configures the resolver for workloads and the virtual IPs.
type DNS struct {
	Domain      string
	VirtualIPv4 netip.Prefix
	VirtualIPv6 netip.Prefix
	// Upstreams is empty for those of /etc/resolv.conf.
	Upstreams []netip.AddrPort
	TTL       time.Duration
}

// Access says how the access log is written.
type Access string

// The formats of the access log.
const (
	AccessOff  Access = "off"
	AccessText Access = "text"
	AccessJSON Access = "json"
)

// AccessEntries says what the access log has.
type AccessEntries string

// What the access log can have.
const (
	EntriesAll      AccessEntries = "all"
	EntriesProblems AccessEntries = "problems"
)

// Log configures the logs.
type Log struct {
	Level         string
	Format        string
	Access        Access
	AccessEntries AccessEntries
}

// Socket is the path of the admin socket.
func (c *Config) Socket() string { return filepath.Join(c.RunDir, SocketName) }

// SocketName is the admin socket's name within runDir.
const SocketName = "admin.sock"

// MeshFiles are the files with sections of the mesh: those of the static
// source, and the configuration itself if it has any.
func (c *Config) MeshFiles() []string {
	if !c.InlineMesh {
		return c.Sources.StaticFiles
	}
	return append([]string{c.File}, c.Sources.StaticFiles...)
}

// Origin says where a key was set: "default", "file:line", "$VARIABLE" or
// "--flag".
func (c *Config) Origin(key string) string {
	if o := c.origins[key]; o != "" {
		return o
	}
	return OriginDefault
}

// OriginDefault is the origin of what nobody set.
const OriginDefault = "default"

// place is where a problem with a key is looked for: the file, if nothing set
// it.
func (c *Config) place(key string) string {
	if o := c.Origin(key); o != OriginDefault {
		return o
	}
	if c.File == "" {
		return "configuration"
	}
	return c.File
}
