// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

var testPorts = Ports{Outbound: 15001, InboundPlain: 15006, InboundHBONE: 15008, InboundMTLS: 20000, DNS: 15053}

var worlds atomic.Int32

// world is a node of a test's own: a cgroup subtree as root of the capture and
// a network namespace.
type world struct {
	t      *testing.T
	dir    string // of the root cgroup
	path   string // of the same, within the hierarchy
	ns     *netns.Handle
	cookie uint64
	opts   Options
	*Capture
	proxy    *actor
	outbound map[int]int // listeners of the proxy, by domain
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel()
	return makeWorld(t)
}

// makeWorld is newWorld for a test that has one already.
func makeWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, outbound: make(map[int]int)}
	name := fmt.Sprintf("%s%d-%d", testPrefix, os.Getpid(), worlds.Add(1))
	w.dir = filepath.Join(hierarchy(), name)
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroup(w.dir) })
	var err error
	if w.path, err = cgroup.Within(w.dir); err != nil {
		t.Fatal(err)
	}
	w.ns = w.newNetNS()
	w.opts = Options{
		CgroupRoot: w.dir, BPFFS: bpffs, Instance: strings.TrimPrefix(name, testPrefix), Ports: testPorts,
		HeartbeatTimeout: time.Hour, Logger: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}
	return w
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) { l.t.Logf("%s", p); return len(p), nil }

var _ io.Writer = testLog{}

// newNetNS makes a namespace with loopback, which also has the node's address.
func (w *world) newNetNS() *netns.Handle {
	w.t.Helper()
	ns, err := netns.New()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ns.Close() })
	w.link(ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{"10.9.0.1/32", "2001:db8::1/128"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			if err := h.AddrAdd(lo, addr); err != nil {
				return err
			}
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"}); err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	return ns
}

func (w *world) link(ns *netns.Handle, fn func(*netlink.Handle) error) {
	w.t.Helper()
	h, err := netlink.NewHandleAt(vnetns.NsHandle(ns.FD()))
	if err != nil {
		w.t.Fatal(err)
	}
	defer h.Close()
	if err := fn(h); err != nil {
		w.t.Fatal(err)
	}
}

// cgroup makes a cgroup below the root and returns its directory.
func (w *world) cgroup(name string) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// process starts an actor in a cgroup below the root.
func (w *world) process(name string) *actor {
	w.t.Helper()
	return startActor(w.t, w.cgroup(name), w.ns, 0)
}

// open opens the capture, as long as the test lasts.
func (w *world) open() {
	w.t.Helper()
	c, err := Open(w.opts)
	if err != nil {
		var verifier interface{ Error() string }
		if errors.As(err, &verifier) {
			w.t.Fatalf("%+v", err)
		}
		w.t.Fatal(err)
	}
	w.Capture = c
	w.t.Cleanup(func() {
		c.Close()
		if err := Leave(w.opts); err != nil {
			w.t.Error(err)
		}
	})
}

// start opens the capture and plays the proxy: a process of its own that
// listens, a namespace that is attached, a heart that beats.
func (w *world) start() {
	w.t.Helper()
	w.open()
	w.serve()
}

func (w *world) serve() {
	w.t.Helper()
	w.proxy = w.process("proxy")
	w.outbound[unix.AF_INET] = w.listenOwn(w.proxy, "127.0.0.1:15001")
	w.outbound[unix.AF_INET6] = w.listenOwn(w.proxy, "[::1]:15001")
	var err error
	if w.cookie, err = w.AttachNetNS(w.ns.FD()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Heartbeat(); err != nil {
		w.t.Fatal(err)
	}
}

// listenOwn listens as the proxy does.
func (w *world) listenOwn(a *actor, addr string) int {
	w.t.Helper()
	fd := a.socket(domainOf(addr), unix.SOCK_STREAM)
	a.with(fd, w.OwnSocket)
	if err := a.bind(fd, addr); err != nil {
		w.t.Fatal(err)
	}
	a.must(call{Op: "listen", FD: fd})
	return fd
}

// dialOwn dials as the proxy does, with a source to show if it is valid.
func (w *world) dialOwn(addr string, source netip.AddrPort) (int, error) {
	w.t.Helper()
	fd := w.proxy.socket(domainOf(addr), unix.SOCK_STREAM)
	w.proxy.with(fd, func(fd int) error {
		if source.IsValid() {
			return w.OwnSocketWithSource(fd, source)
		}
		return w.OwnSocket(fd)
	})
	return fd, w.proxy.connect(fd, addr)
}

func (w *world) apply(s State) {
	w.t.Helper()
	if err := w.Apply(s); err != nil {
		w.t.Fatal(err)
	}
}

// accepted accepts at the proxy and returns the flow.
func (w *world) accepted(domain int) (Flow, error) {
	w.t.Helper()
	fd, client := w.proxy.accept(w.outbound[domain])
	defer w.proxy.close(fd)
	return w.Flow(w.cookie, client, w.proxy.local(fd))
}

// workload returns a workload whose cgroup is called as it is.
func (w *world) workload(name string) Workload {
	return Workload{
		Name:      mesh.Name{Name: name},
		Selectors: []mesh.Selector{{Kind: mesh.SelectCgroup, Value: w.path + "/" + name}},
	}
}

func destination(addr, service string) Destination {
	return Destination{Addr: netip.MustParseAddrPort(addr), Service: mesh.Name{Name: service}}
}

// name returns a name as the package does; "" stands for no workload.
func name(s string) mesh.Name {
	if s == "" {
		return mesh.Name{}
	}
	return mesh.Name{Namespace: mesh.DefaultNamespace, Name: s}
}

// elapse lets the kernel's clock go on, where the time itself is what matters.
func elapse(d time.Duration) { <-time.After(d) }

func (w *world) connections(workload string, o Outcome) (n uint64) {
	w.t.Helper()
	s, err := w.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range s.Connections {
		if c.Workload == name(workload) && c.Outcome == o {
			n += c.Count
		}
	}
	return n
}

func (w *world) refusals(workload string, r Reason) (n uint64) {
	w.t.Helper()
	s, err := w.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range s.Refusals {
		if c.Workload == name(workload) && c.Reason == r {
			n += c.Count
		}
	}
	return n
}

func ptr[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }
