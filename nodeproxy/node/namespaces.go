// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

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

	// joining is held while a namespace is opened: who looks for the processes
	// of workloads and who hears of them from the kernel may find the same one.
	joining sync.Mutex

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

// join returns the cookie of the namespace of h, which it takes over, and opens
// that for the workload if it is new.
func (s *namespaces) join(ctx context.Context, w mesh.Name, h *netns.Handle) (cookie uint64, ok bool) {
	cookie, err := s.cookie(h)
	if err != nil {
		h.Close()
		s.log.Warn("read cookie of network namespace", "workload", w, "error", err)
		return 0, false
	}
	s.joining.Lock()
	defer s.joining.Unlock()
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
