// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// namespace is a network namespace in which the proxy has listeners and
// sk_lookup guards the workloads' ports.
type namespace struct {
	// fd is nil for a namespace that an earlier process attached and this one
	// has not: guarded, but without listeners.
	fd *os.File
	// program is loaded and not attached yet, unless nil.
	program *ebpf.Program
	// own says that it is the process's own, which needs no entering.
	own bool
}

// entry is what netns.Opener takes for the namespace.
func (n *namespace) entry() int {
	if n.own {
		return netns.Own
	}
	return int(n.fd.Fd())
}

func (n *namespace) close() {
	if n.fd != nil {
		n.fd.Close()
	}
	if n.program != nil {
		n.program.Close()
	}
}

const netnsPin = "netns-"

func netnsName(cookie uint64) string { return netnsPin + strconv.FormatUint(cookie, 10) }

func (c *Capture) netnsPath(cookie uint64) string {
	return filepath.Join(linksDir(c.kernel.dir), netnsName(cookie))
}

// AttachNetNS makes a network namespace part of the mesh: workloads in it are
// captured from now on, so its outbound and DNS listeners should exist; their
// ports of the proxy are taken for the proxy, and ports of workloads are
// guarded. It returns the namespace's cookie, the same one every time. The
// descriptor stays the caller's. The namespace lives until DetachNetNS or
// Close, even if its processes don't.
func (c *Capture) AttachNetNS(nsFD int) (uint64, error) {
	own, err := netns.Same(nsFD, netns.Own)
	if err != nil {
		return 0, fmt.Errorf("recognise namespace: %w", err)
	}
	cookie := c.ownNetNS
	if !own {
		if cookie, err = netcookie.By(c.opts.Namespaces, nsFD); err != nil {
			return 0, fmt.Errorf("read namespace cookie: %w", err)
		}
	}
	fd, err := unix.FcntlInt(uintptr(nsFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("keep namespace: %w", err)
	}
	ns := &namespace{fd: os.NewFile(uintptr(fd), "netns"), own: own}

	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		ns.close()
		return 0, err
	}
	program, err := c.loadInbound(cookie)
	if err != nil {
		ns.close()
		return 0, err
	}
	if old := c.namespaces[cookie]; old != nil {
		old.close()
	}
	ns.program = program
	c.namespaces[cookie] = ns
	if c.kernel.pending != nil {
		return cookie, nil // guardAll and enterAll see to it
	}
	if err := c.guard(cookie, ns); err != nil {
		return cookie, err
	}
	return cookie, c.enter(cookie)
}

// enter makes the programs treat namespaces as part of the mesh.
func (c *Capture) enter(cookies ...uint64) error {
	for _, cookie := range cookies {
		if err := c.kernel.maps[bpf.CaptureMapNamespaces].Update(cookie, uint32(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("register namespace: %w", err)
		}
	}
	// Who listened there before was never seen.
	return c.reconcilePorts(c.declared)
}

// enterAll does what was delayed until the programs see sockets that begin to listen.
func (c *Capture) enterAll() error {
	var attached []uint64
	for cookie, ns := range c.namespaces {
		if ns.fd != nil {
			attached = append(attached, cookie)
		}
	}
	if len(attached) > 0 {
		if err := c.enter(attached...); err != nil {
			return err
		}
	}
	for _, do := range c.delayed {
		if err := do(); err != nil {
			return err
		}
	}
	c.delayed = nil
	return nil
}

// guardAll attaches sk_lookup wherever it is to be.
func (c *Capture) guardAll() error {
	for cookie, ns := range c.namespaces {
		if ns.fd == nil {
			continue
		}
		if err := c.guard(cookie, ns); err != nil {
			return err
		}
	}
	return c.guardEarlier()
}

// guardEarlier keeps guarding the namespaces that an earlier process attached and
// this one has not, if that had other maps.
func (c *Capture) guardEarlier() error {
	dirs := linksDirs(c.kernel.pending.earlier)
	if c.kernel.adopted && c.kernel.follows {
		dirs = append(dirs, linksDir(c.kernel.dir))
	}
	for _, dir := range dirs {
		cookies, err := guardedBelow(dir)
		if err != nil {
			return err
		}
		for _, cookie := range cookies {
			if ns := c.namespaces[cookie]; ns != nil && ns.fd != nil || !alive(filepath.Join(dir, netnsName(cookie))) {
				continue
			}
			program, err := c.loadInbound(cookie)
			if err != nil {
				return err
			}
			if err := c.guard(cookie, &namespace{program: program}); err != nil {
				return err
			}
		}
	}
	return nil
}

// guard attaches sk_lookup in the namespace, or brings what is attached there up
// to date, by this layout or another one. It closes the program.
func (c *Capture) guard(cookie uint64, ns *namespace) error {
	program := ns.program
	ns.program = nil
	if program == nil {
		var err error
		if program, err = c.loadInbound(cookie); err != nil {
			return err
		}
	}
	defer program.Close()
	dirs := []string{linksDir(c.kernel.dir)}
	if c.kernel.pending != nil {
		dirs = append(dirs, linksDirs(c.kernel.pending.earlier)...)
	}
	path := c.netnsPath(cookie)
	for _, dir := range dirs {
		at := filepath.Join(dir, netnsName(cookie))
		old, err := link.LoadPinnedLink(at, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("load link of namespace: %w", err)
		}
		defer old.Close()
		err = old.Update(program)
		c.kernel.switching()
		switch {
		case err == nil && at == path:
			return nil
		case err == nil:
			return pinAgain(old, path)
		case !errors.Is(err, unix.ENOLINK):
			return fmt.Errorf("update link of namespace: %w", err)
		}
	}
	if ns.fd == nil {
		return nil // it has just gone
	}
	l, err := link.AttachNetNs(int(ns.fd.Fd()), program)
	if err != nil {
		return fmt.Errorf("attach to namespace: %w", err)
	}
	defer l.Close()
	return replacePin(l, path)
}

// loadInbound loads the program for one namespace: sk_lookup's context doesn't
// tell where it runs.
func (c *Capture) loadInbound(cookie uint64) (*ebpf.Program, error) {
	spec, err := bpf.LoadInbound()
	if err != nil {
		return nil, fmt.Errorf("read inbound program: %w", err)
	}
	err = setConstants(spec, map[string]any{
		"netns":                cookie,
		"have_ingress_ifindex": flag(c.opts.features.ingressIfindex),
		"have_former":          flag(c.kernel.follows),
	})
	if err != nil {
		return nil, err
	}
	shared := c.sharedMaps(spec)
	shared.MapReplacements[formerFlowsMap] = c.kernel.formerFlows
	var objs struct {
		Inbound *ebpf.Program `ebpf:"inbound"`
	}
	if err := spec.LoadAndAssign(&objs, shared); err != nil {
		return nil, fmt.Errorf("load inbound program: %w", err)
	}
	return objs.Inbound, nil
}

// DetachNetNS takes a namespace out of the mesh: workloads in it are refused
// what leads into the mesh. It returns ErrUnknownNetNS for one that is not
// attached.
func (c *Capture) DetachNetNS(cookie uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	ns := c.namespaces[cookie]
	if ns == nil {
		return ErrUnknownNetNS
	}
	return c.forget(cookie)
}

func (c *Capture) forget(cookie uint64) error {
	maps := c.kernel.maps
	for _, name := range []string{bpf.CaptureMapNamespaces, bpf.CaptureMapInboundListeners} {
		if err := maps[name].Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget namespace in %s: %w", name, err)
		}
	}
	if err := os.Remove(c.netnsPath(cookie)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("detach from namespace: %w", err)
	}
	if ns := c.namespaces[cookie]; ns != nil {
		ns.close()
		delete(c.namespaces, cookie)
	}
	return c.forgetPorts(cookie)
}

// NetNS returns the cookies of the namespaces that are guarded, by this process
// or since an earlier one.
func (c *Capture) NetNS() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	cookies := make([]uint64, 0, len(c.namespaces))
	for cookie := range c.namespaces {
		cookies = append(cookies, cookie)
	}
	return cookies
}

// SetInboundListener gives the kernel the listener to which plaintext
// connections to permissive workloads in a namespace are steered. It has to
// listen already and be plain TCP (no MPTCP, which Go's listeners are by
// default).
func (c *Capture) SetInboundListener(cookie uint64, fd int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	if c.namespaces[cookie] == nil {
		return ErrUnknownNetNS
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep inbound listener: %w", err)
	}
	set := func() error {
		defer unix.Close(own)
		if err := c.kernel.maps[bpf.CaptureMapInboundListeners].Update(cookie, uint64(own), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("set inbound listener: %w", err)
		}
		return nil
	}
	if c.kernel.pending == nil {
		return set()
	}
	c.delayed = append(c.delayed, set)
	return nil
}

// adoptNamespaces finds the namespaces that an earlier process attached. They
// stay guarded, and count as without listeners until AttachNetNS; those that
// died meanwhile are cleared away.
func (c *Capture) adoptNamespaces() error {
	cookies, err := guardedBelow(linksDir(c.kernel.dir))
	if err != nil {
		return err
	}
	for _, cookie := range cookies {
		if c.namespaces[cookie] != nil {
			continue
		}
		if alive(c.netnsPath(cookie)) {
			c.namespaces[cookie] = &namespace{}
			continue
		}
		if err := c.forget(cookie); err != nil {
			return err
		}
	}
	return nil
}

// guardedBelow returns the namespaces whose links are pinned in a directory.
func guardedBelow(links string) (cookies []uint64, err error) {
	entries, err := os.ReadDir(links)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read links: %w", err)
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), netnsPin)
		if !ok {
			continue
		}
		cookie, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("pin %s: %w", e.Name(), err)
		}
		cookies = append(cookies, cookie)
	}
	return cookies, nil
}

// alive says whether the namespace of a pinned link still exists.
func alive(path string) bool {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false
	}
	ns := info.NetNs()
	return ns != nil && ns.NetnsInode != 0
}
