// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// namespace is a network namespace with workloads in it, and the proxy's
// listeners there. The node's own is one of them.
type namespace struct {
	cookie    uint64
	handle    *netns.Handle
	listeners *listeners
	accepting []func() // each stops accepting on one loop
	resolving []func() // each stops a socket of the resolver
	own       bool
	way       netns.Opener
	sources   sources
	diagMu    sync.Mutex
	diag      *sockdiag.Socket // for sockets
}

// fd returns what packages netns and loop take for the namespace.
func (n *namespace) fd() int {
	if n.own {
		return netns.Own
	}
	return n.handle.FD()
}

// socket makes a socket in the namespace.
func (n *namespace) socket(to netip.Addr) (int, error) {
	if n.own {
		return loop.Socket(to)
	}
	fd, err := n.way.Socket(n.fd(), familyOf(to), unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	// As loop.Socket does: small messages must not wait for the ACK of the
	// one before.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fd, nil
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// source returns the true source of a client: the address that it bound, or,
// where it left the choice to the kernel and so got loopback, the one that the
// kernel would have chosen without the mesh. family decides between IPv4 and
// IPv6, since a server can only be shown an address of its own.
func (n *namespace) source(client netip.AddrPort, family netip.Addr) netip.AddrPort {
	a := client.Addr().Unmap()
	if !a.IsLoopback() && a.Is4() == family.Is4() {
		return netip.AddrPortFrom(a, client.Port())
	}
	of := n.sources.towards(family)
	if !of.IsValid() {
		return netip.AddrPortFrom(a, client.Port())
	}
	return netip.AddrPortFrom(of, client.Port())
}

// namespaces are all those that the node serves.
type namespaces struct {
	capture *sockmap.Capture
	ports   sockmap.Ports
	sockets *sockets
	log     *slog.Logger
	// way is how to get into namespaces.
	way netns.Opener
	// accept gives a namespace's listeners to the loops.
	accept func(*namespace) error

	mu         sync.RWMutex
	held       bool // accept nothing yet
	byCookie   map[uint64]*namespace
	byWorkload map[mesh.Name][]uint64
	own        *namespace
	problem    error // of the last find
}

func newNamespaces(c *sockmap.Capture, ports sockmap.Ports, way netns.Opener, all *sockets, log *slog.Logger, accept func(*namespace) error) *namespaces {
	return &namespaces{
		capture: c, ports: ports, sockets: all, way: way, log: log, accept: accept,
		byCookie:   make(map[uint64]*namespace),
		byWorkload: make(map[mesh.Name][]uint64),
	}
}

// openOwn opens the node's own namespace.
func (s *namespaces) openOwn(ctx context.Context) error {
	h, err := netns.OfThread()
	if err != nil {
		return err
	}
	n, err := s.open(ctx, h, true)
	if err != nil {
		return err
	}
	s.own = n
	return nil
}

// open makes a namespace part of the mesh: listeners first, then capture, so
// that nothing is redirected to where nobody listens. It takes over h.
func (s *namespaces) open(ctx context.Context, h *netns.Handle, own bool) (_ *namespace, err error) {
	n := &namespace{handle: h, own: own, way: s.way}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	if n.cookie, err = netcookie.By(s.way, n.fd()); err != nil {
		return nil, err
	}
	o := &opener{
		sockets: s.sockets, scope: netnsScope(n.cookie), ports: s.ports,
		in: binder{way: s.way, ns: n.fd(), mark: s.capture.Control},
	}
	if n.listeners, err = o.open(ctx); err != nil {
		return nil, err
	}
	n.refreshSources(s.log)
	s.mu.RLock()
	held := s.held
	s.mu.RUnlock()
	if !held {
		if err := s.accept(n); err != nil {
			return nil, err
		}
	}
	if _, err := s.capture.AttachNetNS(h.FD()); err != nil {
		return nil, err
	}
	if err := s.steer(n); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byCookie[n.cookie] = n
	return n, nil
}

// steer tells the kernel where plaintext connections go.
func (s *namespaces) steer(n *namespace) error {
	if n.listeners.plain == nil {
		return nil
	}
	return withFD(n.listeners.plain, func(fd int) error { return s.capture.SetInboundListener(n.cookie, fd) })
}

// openInherited opens the namespaces in which an earlier process of the node had
// listeners. Whose they are is found out with the workloads.
func (s *namespaces) openInherited(ctx context.Context) {
	for _, scope := range s.sockets.inherited.Scopes() {
		if !strings.HasPrefix(scope, netnsScopes) || scope == netnsScope(s.own.cookie) {
			continue
		}
		h, err := netns.OfSocket(s.sockets.inherited.Peek(scope))
		if err == nil {
			_, err = s.open(ctx, h, false)
		}
		if err != nil {
			s.log.Warn("open network namespace of the process before", "scope", scope, "error", err)
		}
	}
}

// hold keeps the listeners of all namespaces from accepting until release.
func (s *namespaces) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

func (s *namespaces) release() error {
	s.mu.Lock()
	s.held = false
	s.mu.Unlock()
	for _, n := range s.all() {
		if err := s.accept(n); err != nil {
			return err
		}
	}
	return nil
}

// stopAccepting is the opposite of accept, for all of them.
func (s *namespaces) stopAccepting() {
	for _, n := range s.all() {
		for _, stop := range n.accepting {
			stop()
		}
		n.accepting = nil
	}
}

// close gives up what open has done; for a namespace whose processes are gone.
func (n *namespace) close() {
	for _, stop := range slices.Concat(n.accepting, n.resolving) {
		stop()
	}
	if n.listeners != nil {
		n.listeners.Close()
	}
	n.closeSockets()
	if n.handle == nil {
		return
	}
	if s, ok := n.way.(*stocked); ok && !n.own {
		s.forget(n.handle.Inode())
	}
	n.handle.Close()
}

// get returns the namespace with that cookie, or nil.
func (s *namespaces) get(cookie uint64) *namespace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byCookie[cookie]
}

// of returns the namespace of a workload, the first one if it is in several;
// the node's own unless another is known.
func (s *namespaces) of(w mesh.Name) *namespace { return s.at(w, netip.Addr{}) }

// at returns the namespace of a workload in which an address is that of an
// interface: processes in different containers can be one workload.
func (s *namespaces) at(w mesh.Name, a netip.Addr) *namespace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := s.own
	for i, cookie := range s.byWorkload[w.Canonical()] {
		n := s.byCookie[cookie]
		if n == nil {
			continue
		}
		if n.has(a) {
			return n
		}
		if i == 0 {
			found = n
		}
	}
	return found
}

// cookieOf is of for captureState: 0 stands for the node's own.
func (s *namespaces) cookieOf(w mesh.Name) uint64 {
	if n := s.of(w); n != s.own {
		return n.cookie
	}
	return 0
}

// find opens the namespaces of the workloads: those that are configured, and
// those that their processes are in. It reports whether anything changed.
func (s *namespaces) find(ctx context.Context, workloads []*mesh.Workload, cgroups hierarchy) bool {
	changed := false
	running := cgroups.cgroupsOf(workloads)
	var problem error
	for _, w := range workloads {
		handles, err := s.locate(w, cgroups, running[w.Canonical()])
		if err != nil {
			s.log.Debug("find network namespace", "workload", w.Name, "error", err)
			problem = fmt.Errorf("find network namespace of %s: %w", w.Name, err)
		}
		var cookies []uint64
		for _, h := range handles {
			if cookie, ok := s.join(ctx, w.Name, h); ok {
				cookies = append(cookies, cookie)
			}
		}
		if len(cookies) > 0 && s.assign(w.Name, cookies) {
			changed = true
		}
	}
	s.report(problem)
	return changed
}

// report says once what is in the way, and once that it is no more.
func (s *namespaces) report(problem error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case problem == nil && s.problem != nil:
		s.log.Info("network namespaces of all workloads are found again")
	case problem != nil && (s.problem == nil || s.problem.Error() != problem.Error()):
		s.log.Warn("workloads in network namespaces of their own are refused", "error", problem)
	}
	s.problem = problem
}

// lastProblem is what keeps the node from finding a namespace; nil if nothing.
func (s *namespaces) lastProblem() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.problem
}

// locate returns the namespaces of a workload, each once; none when nobody
// knows yet. The caller closes them.
func (s *namespaces) locate(w *mesh.Workload, cgroups hierarchy, running []string) ([]*netns.Handle, error) {
	if w.NetNS != "" {
		h, err := netns.Open(w.NetNS)
		if err != nil {
			return nil, err
		}
		return []*netns.Handle{h}, nil
	}
	var found []*netns.Handle
	var failed error
	known := make(map[string]bool) // by what their links in /proc say
	for _, at := range running {
		for _, pid := range cgroups.pidsIn(at) {
			// Costs less than opening it; who may not read it asks the helper.
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err == nil && known[link] {
				continue
			}
			h, err := s.way.OfPID(pid, at)
			switch {
			case err == nil && slices.ContainsFunc(found, func(f *netns.Handle) bool { return f.Inode() == h.Inode() }):
				h.Close()
			case err == nil:
				found = append(found, h)
				known[link] = link != ""
			case !errors.Is(err, netns.ErrGone):
				failed = err
			}
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return nil, failed
}

// seen handles the kernel's report of a workload in a namespace without
// listeners.
func (s *namespaces) seen(ctx context.Context, e *sockmap.NetNSSeen) bool {
	if e.PID == 0 || s.get(e.NetNS) != nil {
		return false
	}
	at, err := cgroup.OfPID(e.PID)
	if err != nil {
		return false // gone
	}
	h, err := s.way.OfPID(e.PID, at)
	if err != nil {
		s.log.Debug("open network namespace of process", "pid", e.PID, "error", err)
		return false
	}
	if cookie, err := s.cookie(h); err != nil || cookie != e.NetNS {
		h.Close() // the pid belongs to somebody else by now
		return false
	}
	cookie, ok := s.join(ctx, e.Workload, h)
	if !ok {
		return false
	}
	s.mu.RLock()
	cookies := slices.Clone(s.byWorkload[e.Workload.Canonical()])
	s.mu.RUnlock()
	if slices.Contains(cookies, cookie) {
		return false
	}
	return s.assign(e.Workload, append(cookies, cookie))
}

// cookie returns the cookie of a namespace. One that is open here keeps its
// inode, and costs nothing to recognise.
func (s *namespaces) cookie(h *netns.Handle) (uint64, error) {
	s.mu.RLock()
	for cookie, n := range s.byCookie {
		if n.handle.Inode() == h.Inode() {
			s.mu.RUnlock()
			return cookie, nil
		}
	}
	s.mu.RUnlock()
	return netcookie.By(s.way, h.FD())
}

// join returns the cookie of the namespace of h, which it takes over, and opens
// that for the workload if it is new.
func (s *namespaces) join(ctx context.Context, w mesh.Name, h *netns.Handle) (cookie uint64, ok bool) {
	cookie, err := s.cookie(h)
	if err != nil {
		h.Close()
		s.log.Warn("read cookie of network namespace", "workload", w, "error", err)
		return 0, false
	}
	if s.get(cookie) != nil {
		h.Close()
		return cookie, true
	}
	if _, err := s.open(ctx, h, false); err != nil {
		s.log.Warn("open network namespace", "workload", w, "error", err)
		return 0, false
	}
	s.log.Info("opened network namespace", "workload", w, "netns", cookie)
	return cookie, true
}

// assign notes the namespaces that a workload is in, and reports whether that is
// news. The node's own comes first, since that is what "somewhere" means.
func (s *namespaces) assign(w mesh.Name, cookies []uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortFunc(cookies, func(a, b uint64) int {
		if (a == s.own.cookie) != (b == s.own.cookie) {
			if a == s.own.cookie {
				return -1
			}
			return 1
		}
		return cmp.Compare(a, b)
	})
	name := w.Canonical()
	if slices.Equal(s.byWorkload[name], cookies) {
		return false
	}
	_, known := s.byWorkload[name]
	s.byWorkload[name] = cookies
	// Before, it counted as in the node's own.
	return known || len(cookies) > 1 || cookies[0] != s.own.cookie
}

// sweep closes the namespaces that no workload is in any more: the proxy's own
// listeners would keep them alive for ever.
func (s *namespaces) sweep(workloads []*mesh.Workload, cgroups hierarchy) {
	used := make(map[uint64]bool)
	running := cgroups.cgroupsOf(workloads)
	for _, w := range workloads {
		handles, err := s.locate(w, cgroups, running[w.Canonical()])
		if err != nil {
			continue
		}
		for _, h := range handles {
			if cookie, err := s.cookie(h); err == nil {
				used[cookie] = true
			}
			h.Close()
		}
	}
	for _, n := range s.all() {
		if n.own || used[n.cookie] {
			continue
		}
		// A container engine may hold it for the next process.
		if mounted, err := netns.Mounted(n.fd()); err != nil || mounted {
			continue
		}
		s.forget(n)
	}
}

func (s *namespaces) forget(n *namespace) {
	s.mu.Lock()
	delete(s.byCookie, n.cookie)
	for w, cookies := range s.byWorkload {
		cookies = slices.DeleteFunc(slices.Clone(cookies), func(c uint64) bool { return c == n.cookie })
		if s.byWorkload[w] = cookies; len(cookies) == 0 {
			delete(s.byWorkload, w)
		}
	}
	s.mu.Unlock()
	if err := s.capture.DetachNetNS(n.cookie); err != nil && !errors.Is(err, sockmap.ErrUnknownNetNS) {
		s.log.Warn("detach network namespace", "netns", n.cookie, "error", err)
	}
	n.close()
	s.sockets.forget(netnsScope(n.cookie))
	s.log.Info("closed network namespace", "netns", n.cookie)
}

// refreshSources follows changes of addresses and routes.
func (s *namespaces) refreshSources() {
	for _, n := range s.all() {
		n.refreshSources(s.log)
	}
}

// all returns the namespaces, the node's own first.
func (s *namespaces) all() []*namespace {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := []*namespace{}
	for _, n := range s.byCookie {
		list = append(list, n)
	}
	slices.SortFunc(list, func(a, b *namespace) int {
		switch {
		case a.own == b.own:
			return int(int64(a.cookie) - int64(b.cookie))
		case a.own:
			return -1
		default:
			return 1
		}
	})
	return list
}

// close ends all of them.
func (s *namespaces) close() {
	for _, n := range s.all() {
		n.close()
	}
	if way, ok := s.way.(*stocked); ok {
		way.wait()
	}
}

var errNoNamespace = fmt.Errorf("network namespace is gone")
