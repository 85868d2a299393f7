// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/internal/netlinkio"
)

// Opener is a way into network namespaces.
type Opener interface {
	// Socket makes a socket in the namespace of fd, close-on-exec and
	// non-blocking.
	Socket(fd, domain, typ, protocol int) (int, error)
	// OfPID opens the namespace of a process, which must be in the cgroup at
	// that path within the hierarchy, or below it: a pid is reused soon.
	OfPID(pid int, cgroup string) (*Handle, error)
}

// Direct is the way of a process that has the privileges itself.
type Direct struct{}

// Socket implements Opener.
func (Direct) Socket(fd, domain, typ, protocol int) (int, error) {
	return Socket(fd, domain, typ, protocol)
}

// OfPID implements Opener.
func (Direct) OfPID(pid int, _ string) (*Handle, error) { return OfPID(pid) }

// CookieBy is Cookie by a way of choice.
func CookieBy(way Opener, fd int) (uint64, error) {
	// Any family will do; this one can't be missing.
	sock, err := way.Socket(fd, unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, fmt.Errorf("read cookie of network namespace: %w", err)
	}
	defer unix.Close(sock)
	return CookieOfSocket(sock)
}

// Addresses returns the addresses of the interfaces in the namespace of fd.
func Addresses(way Opener, fd int) ([]netip.Prefix, error) {
	sock, err := way.Socket(fd, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	defer unix.Close(sock)
	if err := netlinkio.Prepare(sock); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	req.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	var found []netip.Prefix
	err = netlinkio.Execute(sock, req, func(b []byte) bool {
		if p, ok := parseAddress(b); ok {
			found = append(found, p)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return found, nil
}

// parseAddress reads a struct ifaddrmsg and its attributes. IFA_LOCAL is the
// interface's own address where a peer's differs (rtnetlink(7)).
func parseAddress(b []byte) (netip.Prefix, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return netip.Prefix{}, false
	}
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return netip.Prefix{}, false
	}
	var own netip.Addr
	for _, a := range attrs {
		addr, ok := netip.AddrFromSlice(a.Value)
		if !ok {
			continue
		}
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			own = addr
		case unix.IFA_ADDRESS:
			if !own.IsValid() {
				own = addr
			}
		}
	}
	return netip.PrefixFrom(own, int(b[1])), own.IsValid()
}

// MayEnter returns nil when this process may enter network namespaces itself,
// which it finds out by entering its own: the kernel asks for the same
// privileges (netns_install in net/core/net_namespace.c).
func MayEnter() error {
	h, err := OfThread()
	if err != nil {
		return err
	}
	defer h.Close()
	return Do(h.FD(), func() error { return nil })
}

// Here reports whether a process is certainly in the caller's namespace. It
// needs no privileges: the files below /proc/PID/net are each namespace's own,
// with inode numbers of their own, for everybody to look at, where
// /proc/PID/ns/net is not.
func Here(pid int) bool {
	var own, of unix.Stat_t
	if unix.Stat("/proc/thread-self/net/tcp", &own) != nil || unix.Stat("/proc/"+strconv.Itoa(pid)+"/net/tcp", &of) != nil {
		return false
	}
	return own.Dev == of.Dev && own.Ino == of.Ino
}
