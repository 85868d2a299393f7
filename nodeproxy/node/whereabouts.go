// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Which network namespaces the processes of workloads are in.

// find opens the namespaces of the workloads: those that are configured, and
// those that their processes are in, which run in the cgroups of running. With
// sweep it closes those that no workload is in any more. It reports whether
// anything changed.
func (s *namespaces) find(ctx context.Context, workloads []*mesh.Workload, cgroups hierarchy, running map[mesh.Name][]string, sweep bool) (changed bool) {
	before := s.all() // younger ones may be of processes that are younger than the look
	used := make(map[uint64]bool)
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
				used[cookie] = true
			}
		}
		if len(cookies) > 0 && s.assign(w.Name, cookies) {
			changed = true
		}
	}
	s.report(problem)
	if sweep && s.sweep(before, used) {
		changed = true
	}
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

// sweep closes those of the namespaces that no workload is in any more, and
// reports whether there were any: the proxy's own listeners would keep them alive
// for ever.
func (s *namespaces) sweep(list []*namespace, used map[uint64]bool) (any bool) {
	for _, n := range list {
		if n.own || used[n.cookie] {
			continue
		}
		// A container engine may hold it for the next process.
		if mounted, err := netns.Mounted(n.fd()); err != nil || mounted {
			continue
		}
		s.forget(n)
		any = true
	}
	return any
}
