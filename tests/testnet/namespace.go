// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrClosed is returned for work in a namespace that is closed.
var ErrClosed = errors.New("namespace is closed")

// Namespace is a network namespace and a mount namespace with a cgroup: what a
// host and a container have in common.
type Namespace struct {
	topology *Topology
	name     string
	dir      string
	cgroup   string
	netns    string
	nsFD     int
	// down has the routes of links that are down, for the thread only.
	down map[string][]netlink.Route

	calls   chan func()
	started chan struct{} // closed when the thread is found
	closed  chan struct{} // closed when the thread takes no more calls
	stop    chan struct{} // closed to end the thread
}

// newNamespace makes the namespaces on a thread of their own. The name server
// of what runs inside is said by the file resolv.conf in dir.
func newNamespace(t *Topology, name, dir, cgroup string) (*Namespace, error) {
	n := &Namespace{
		topology: t,
		name:     name,
		dir:      dir,
		cgroup:   cgroup,
		netns:    filepath.Join(dir, "netns"),
		calls:    make(chan func()),
		started:  make(chan struct{}),
		closed:   make(chan struct{}),
		stop:     make(chan struct{}),
		nsFD:     -1,
	}
	for _, d := range []string{dir, filepath.Join(dir, "log"), cgroup} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make namespace %s: %w", name, err)
		}
	}
	if err := n.SetResolver(); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go n.thread(ready)
	if err := <-ready; err != nil {
		n.close()
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	if err := n.pin(); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

// thread holds the namespaces. It never unlocks its thread: the runtime ends a
// locked thread with its goroutine and doesn't reuse it, so that nothing else
// ever runs in these namespaces.
func (n *Namespace) thread(ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not on the main thread: it doesn't end with a goroutine, and
		// /proc/self is its view of the machine. While it is held here, the
		// next goroutine gets another one.
		go n.thread(ready)
		<-n.started
		runtime.UnlockOSThread()
		return
	}
	close(n.started)
	defer close(n.closed)
	err := n.enter()
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-n.calls:
			f()
		case <-n.stop:
			return
		}
	}
}

func (n *Namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := bindFile(n.ResolvConf(), "/etc/resolv.conf"); err != nil {
		return err
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	n.nsFD = fd
	return linkUp("lo")
}

// pin makes the network namespace reachable by path, for nsenter and for
// programs that take a path. The mount is made outside, where it can be seen.
func (n *Namespace) pin() error {
	if err := os.WriteFile(n.netns, nil, 0o600); err != nil {
		return fmt.Errorf("pin namespace %s: %w", n.name, err)
	}
	return bindFile(fmt.Sprintf("/proc/self/fd/%d", n.nsFD), n.netns)
}

// close ends the thread, and with it every process that was started from it.
func (n *Namespace) close() {
	close(n.stop)
	<-n.closed
	if n.nsFD >= 0 {
		_ = unix.Close(n.nsFD)
		n.nsFD = -1
	}
}

// Name returns the name the namespace was made with.
func (n *Namespace) Name() string { return n.name }

// Dir returns the namespace's directory, which is removed with the topology.
// It looks the same from inside and from outside.
func (n *Namespace) Dir() string { return n.dir }

// NetNS returns the path that the network namespace is pinned at.
func (n *Namespace) NetNS() string { return n.netns }

// Cgroup returns the absolute path of the namespace's cgroup, or of one below
// it.
func (n *Namespace) Cgroup(below ...string) string {
	return filepath.Join(append([]string{n.cgroup}, below...)...)
}

// ResolvConf returns the path of the file that processes inside see as
// /etc/resolv.conf.
func (n *Namespace) ResolvConf() string { return filepath.Join(n.dir, "resolv.conf") }

// SetResolver makes servers the name servers of what runs inside. With none,
// names don't resolve (and no query leaves the machine).
func (n *Namespace) SetResolver(servers ...string) error {
	// Ask again soon, and for as long as the ten seconds of the default.
	text := "options timeout:1 attempts:5\n"
	for _, s := range servers {
		text += "nameserver " + s + "\n"
	}
	// Written in place: the file is bind-mounted, a renamed one would not be.
	if err := os.WriteFile(n.ResolvConf(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	return nil
}

// Do runs f inside the namespaces, on their thread. f must not start
// goroutines that are expected to be inside too, and must not call Do.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case n.calls <- func() { result <- f() }:
		return <-result
	case <-n.closed:
		return fmt.Errorf("%s: %w", n.name, ErrClosed)
	}
}

// Listen opens a listener inside. The address has to be a literal.
func (n *Namespace) Listen(network, address string) (l net.Listener, err error) {
	err = n.Do(func() error {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// DialContext opens a connection from inside. The address has to be a literal:
// looking up a name takes goroutines, which would run outside.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = n.Do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Sysctl writes a setting below /proc/sys, for example
// "net/ipv4/ip_forward". Those of net belong to the namespace.
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error { return writeSysctl(name, value) })
}

func writeSysctl(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s: %w", name, err)
	}
	return nil
}

// linkUp sets a link of the calling thread's namespace up.
func linkUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
