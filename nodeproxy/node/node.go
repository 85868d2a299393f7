// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/diskcache"
	"github.com/meshproxy/meshproxy/discovery/static"
	"github.com/meshproxy/meshproxy/nodeproxy/admin"
	"github.com/meshproxy/meshproxy/nodeproxy/balance"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/dns"
	"github.com/meshproxy/meshproxy/nodeproxy/handover"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/netns/helper"
	"github.com/meshproxy/meshproxy/systemd"
)

// Options are what a node is started with.
type Options struct {
	Config *config.Config
	// Load reads the configuration again; Reload asks for that.
	Load   func() (*config.Config, error)
	Reload <-chan struct{}
	// Hangup asks to give way to a new executable if there is one, and for a
	// reload otherwise; Upgrade asks for the former in any case.
	Hangup, Upgrade <-chan struct{}
	// Program is what an upgrade starts.
	Program handover.Program
	// Predecessor is the process that hands over to this one; nil if none does.
	Predecessor *handover.Predecessor
	Version     string
	Log         *slog.Logger
	Level       *slog.LevelVar
	// Access takes the access log.
	Access io.Writer
}

// Node is a running node.
type Node struct {
	options Options
	name    string
	log     *slog.Logger
	started time.Time
	conf    atomic.Pointer[config.Config]

	metrics    *telemetry.Metrics
	access     *telemetry.AccessLog
	provider   provider
	leaves     keptLeaves
	cache      *diskcache.Cache
	saving     saving
	static     *static.Source
	consul     *consul.Source // nil: off
	capture    *sockmap.Capture
	cgroups    hierarchy
	cgroupNews atomic.Uint64 // counts the kernel's reports of cgroups that came or went
	merger     *discovery.Merger
	views      *views
	balancer   *balance.Balancer
	checker    *balance.Checker
	loops      []*worker
	sockets    *sockets
	namespaces *namespaces
	pressure   *pressure
	tunnels    *tunnel.Server
	tunnelsAt  *net.TCPListener
	lines      *lineServer
	resolver   *dns.Server
	admin      *admin.Server
	manager    systemd.Notifier

	upgrades upgrades
	changed  <-chan struct{} // the merger's store
	bypassed bypassed
	locals   locals
	// splicePaused: by a command.
	splicePaused atomic.Bool
	reloads      reloads
	applyError   lastError
	ready        atomic.Bool // the first snapshot is in force
	draining     atomic.Bool
	returning    atomic.Bool // it stops, and another process will find its listeners open
	tasks        sync.WaitGroup
}

// Run runs a node until ctx is done, then drains it. It returns nil after an
// orderly stop. What is in the kernel stays there: see sockmap.Leave.
func Run(ctx context.Context, o Options) (err error) {
	frugal()
	n := &Node{options: o, name: o.Config.Node.Name, log: o.Log, started: time.Now()}
	n.reloads = reloads{
		ask: make(chan question), over: make(chan struct{}),
		apply: make(chan struct{}, 1), applyNow: make(chan chan struct{}), loadedAt: n.started,
	}
	n.upgrades.program, n.upgrades.before, n.upgrades.relieved = o.Program, o.Predecessor, make(chan struct{})
	n.conf.Store(o.Config)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if err := n.start(ctx); err != nil {
		stop()
		n.stop()
		return err
	}
	select {
	case <-ctx.Done():
	case <-n.upgrades.relieved:
	}
	n.drain(ctx)
	stop()
	n.stop()
	return nil
}

// start brings the node up in the order in which things rest on each other:
// who we are, what we know, what carries, and last what leads connections to
// us.
func (n *Node) start(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"from the process before", n.inherit},
		{"memory limit", n.startPressure},
		{"telemetry", n.startTelemetry},
		{"identity", n.startIdentity},
		{"discovery", n.startDiscovery},
		{"capture", n.startCapture},
		{"balancer", n.startBalance},
		{"loops", n.startLoops},
		{"dns", n.startDNS},
		{"listeners", n.startListeners},
		{"trust", n.followTrust},
		{"sources", n.startSources},
		{"taking over", n.takeOver},
		{"splice", n.startSplice},
		{"admin", n.startAdmin},
		{"mesh", n.follow},
	} {
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("start %s: %w", step.what, err)
		}
	}
	return nil
}

func (n *Node) startTelemetry(context.Context) (err error) {
	c := n.settingsFile()
	if n.options.Access != nil && c.Log.Access != config.AccessOff {
		n.access, err = telemetry.NewAccessLog(n.options.Access, telemetry.AccessOptions{
			Format: string(c.Log.Access), All: c.Log.AccessEntries == config.EntriesAll,
		})
		if err != nil {
			return err
		}
	}
	n.metrics = telemetry.New(telemetry.Options{
		Version: n.options.Version, AccessLog: n.access, Read: n.readings(), Log: n.log,
	})
	return nil
}

func (n *Node) startCapture(context.Context) error {
	c := n.settingsFile()
	var err error
	if n.cgroups, err = ownCgroups(c); err != nil {
		return err
	}
	way := n.wayIntoNamespaces(c)
	n.capture, err = sockmap.Open(sockmap.Options{
		CgroupRoot: n.cgroups.root, BPFFS: c.BPF.FS, Instance: c.BPF.Instance,
		Ports: portsOf(c), MaxFlows: uint32(c.BPF.MaxFlows), HeartbeatTimeout: c.BPF.ProxyTimeout, Namespaces: way,
		Lock: n.upgrades.offer.Files[lockFile], Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.namespaces = newNamespaces(n.capture, portsOf(c), way, n.sockets, n.log, n.acceptIn)
	n.metrics.FromKernel(n.directViews)
	n.tasks.Go(n.watchKernel)
	return nil
}

// wayIntoNamespaces is the node's own where it has the privileges, and the
// helper's otherwise.
func (n *Node) wayIntoNamespaces(c *config.Config) netns.Opener {
	err := netns.MayEnter()
	if err == nil {
		return netns.Direct{}
	}
	n.log.Debug("network namespaces are the helper's to open", "helper", c.NetNSHelper, "reason", err)
	return newStocked(helper.NewClient(c.NetNSHelper), n.log)
}

func portsOf(c *config.Config) sockmap.Ports {
	return sockmap.Ports{
		Outbound: c.Listeners.Outbound, InboundPlain: c.Listeners.InboundPlain,
		InboundHBONE: c.Listeners.InboundHBONE.Port(), InboundMTLS: c.Listeners.InboundMTLS.Port(), DNS: c.Listeners.DNS,
	}
}

// startListeners opens the namespaces that are known already, the node's own
// first, and what takes tunnels and lines. Nothing is accepted yet: connections
// may be waiting, since before this process, and there is no snapshot to decide
// by.
func (n *Node) startListeners(ctx context.Context) (err error) {
	n.namespaces.hold()
	if err := n.namespaces.openOwn(ctx); err != nil {
		return err
	}
	n.namespaces.openInherited(ctx)
	n.tunnels = n.newTunnelServer()
	at := listenAddress(n.settingsFile().Listeners.InboundHBONE)
	if n.tunnelsAt, err = n.sockets.listenTCP(ctx, meshScope, at, n.capture.Control); err != nil {
		return err
	}
	return n.startLines(ctx)
}

// acceptAll begins to accept.
func (n *Node) acceptAll() error {
	if err := n.namespaces.release(); err != nil {
		return err
	}
	defer n.tunnelsAt.Close() // the server has a descriptor of its own
	if err := withFD(n.tunnelsAt, n.tunnels.Listen); err != nil {
		return err
	}
	return n.lines.accept()
}

// listenAddress: an unspecified IPv4 address means both families.
func listenAddress(at netip.AddrPort) string {
	if at.Addr() == netip.IPv4Unspecified() || !at.Addr().IsValid() {
		return fmt.Sprintf(":%d", at.Port())
	}
	return at.String()
}

// acceptIn gives the listeners of a namespace to every loop, and its resolver
// sockets to the DNS proxy.
func (n *Node) acceptIn(ns *namespace) error {
	if err := n.acceptOnLoops(ns); err != nil {
		return err
	}
	return n.serveDNS(ns)
}

func (n *Node) acceptOnLoops(ns *namespace) error {
	for _, w := range n.loops {
		if err := w.listen(ns); err != nil {
			return err
		}
	}
	return nil
}

// socketFrom makes sockets of a namespace that are the proxy's own; client, if
// valid, is whom the server sees.
func (n *Node) socketFrom(netns uint64, client netip.AddrPort) l4.SocketFunc {
	return func(to netip.AddrPort) (int, error) {
		ns := n.namespaces.get(netns)
		if ns == nil {
			return -1, reason.Wrap(reason.NamespaceUnready, errNoNamespace)
		}
		fd, err := ns.socket(to.Addr())
		if err != nil {
			return -1, err
		}
		if client.IsValid() && client.Addr().Is4() == to.Addr().Is4() {
			err = n.capture.OwnSocketWithSource(fd, client)
		} else {
			err = n.capture.OwnSocket(fd)
		}
		if err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
}

// stop releases what start took, as far as that got.
func (n *Node) stop() {
	n.stopAdmin()
	n.saving.stop()
	if n.resolver != nil {
		n.resolver.Close()
	}
	if n.tunnels != nil {
		n.tunnels.Close()
	}
	if n.lines != nil {
		n.lines.Close()
	}
	for _, w := range n.loops {
		w.close()
	}
	if n.namespaces != nil {
		n.namespaces.close()
	}
	if n.sockets != nil {
		n.sockets.close()
	}
	if n.capture != nil {
		if err := n.capture.Close(); err != nil {
			n.log.Warn("close capture", "error", err)
		}
	}
	n.tasks.Wait()
	n.leaves.close()
	if n.upgrades.after != nil {
		n.upgrades.after.Close()
	}
	if n.access != nil {
		n.access.Close()
	}
}

// newTunnelServer accepts other nodes' tunnels for the workloads here.
func (n *Node) newTunnelServer() *tunnel.Server {
	config := identity.ServerConfig(n.provider, n.views, identity.Options{})
	explainVerification(config)
	seats := make([]tunnel.Seat, len(n.loops))
	for i, w := range n.loops {
		seats[i] = w.seat()
	}
	return tunnel.NewServer(tunnel.ServerOptions{
		Config: configFunc(config), Seats: seats, Logger: n.log,
		Sockets: tunnelSockets, Handshake: shakeHands, Observe: n.observeHandshake,
	})
}

func (n *Node) observeHandshake(h tunnel.Handshake) {
	role := telemetry.Server
	if h.Client {
		role = telemetry.Client
	}
	n.metrics.Handshakes.Done(role, reason.Of(h.Err), h.Resumed, h.Duration)
}

var errDraining = errors.New("the node is draining")

// frugal trades CPU that the data path does not need, since it allocates
// nothing, for memory: collections at less than half the garbage that Go allows
// by default. GOGC in the environment wins.
func frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
}
