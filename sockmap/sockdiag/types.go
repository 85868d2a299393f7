// SPDX-License-Identifier: Apache-2.0

package sockdiag

import "net/netip"

// States is a set of TCP states.
type States uint32

// The states, as in the kernel's include/net/tcp_states.h.
const (
	StateEstablished States = 1 << 1
	StateSynSent     States = 1 << 2
	StateSynRecv     States = 1 << 3
	StateFinWait1    States = 1 << 4
	StateFinWait2    States = 1 << 5
	StateTimeWait    States = 1 << 6
	StateCloseWait   States = 1 << 8
	StateLastAck     States = 1 << 9
	StateListen      States = 1 << 10
	StateClosing     States = 1 << 11
	StateNewSynRecv  States = 1 << 12

	// StatesOpen are those in which a connection can still carry data, or
	// soon will.
	StatesOpen = StateEstablished | StateSynSent | StateSynRecv | StateNewSynRecv |
		StateFinWait1 | StateFinWait2 | StateCloseWait
)

// Listener is a TCP socket that listens.
type Listener struct {
	// Address is what it is bound to, with IPv4-mapped addresses unmapped.
	Address netip.AddrPort
	// IPv6 says that it is an IPv6 socket, which may still serve IPv4.
	IPv6 bool
	// V6Only says that it is an IPv6 socket that serves no IPv4.
	V6Only bool
	// Ifindex is the interface that it is bound to, or 0.
	Ifindex uint32
	// CgroupID is the cgroup of the process that made it, at that time. It is
	// 0 before Linux 5.7 (INET_DIAG_CGROUP_ID, commit 6e3a401fc8af).
	CgroupID uint64
	// Inode is what /proc/PID/fd shows as "socket:[inode]". It is 0 for the
	// TCP socket underneath one of MPTCP.
	Inode uint32
	// Cookie is the one that SO_COOKIE and bpf_get_socket_cookie give.
	Cookie uint64
	UID    uint32
}

// Serves reports whether a connection to that address and this listener's port
// can reach it, interfaces left aside.
func (l *Listener) Serves(dst netip.Addr) bool {
	dst = dst.Unmap()
	bound := l.Address.Addr()
	switch {
	case !bound.IsUnspecified():
		return bound == dst
	case dst.Is4():
		return !l.V6Only
	default:
		return l.IPv6
	}
}

// DialAddress returns an address at which the listener is reached from within
// its namespace: the one it is bound to, or a loopback address.
func (l *Listener) DialAddress() netip.AddrPort {
	bound := l.Address.Addr()
	switch {
	case !bound.IsUnspecified():
		return l.Address
	case l.V6Only:
		return netip.AddrPortFrom(netip.IPv6Loopback(), l.Address.Port())
	default:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), l.Address.Port())
	}
}

// Connection is a TCP socket that has, or had, a peer.
type Connection struct {
	// Local and Remote have IPv4-mapped addresses unmapped.
	Local, Remote netip.AddrPort
	// IPv6 says that it is an IPv6 socket, also where the addresses are IPv4.
	IPv6  bool
	State States
	// Ifindex is the interface that it is bound to, or 0.
	Ifindex uint32
	// CgroupID, Inode and Cookie are as in Listener. A connection that waits
	// to be accepted has no inode yet.
	CgroupID uint64
	Inode    uint32
	Cookie   uint64
	UID      uint32
}

// Filter chooses sockets; the kernel applies it, before it copies anything. A
// zero field means any.
type Filter struct {
	// States default to StatesOpen.
	States States
	// Local and Remote match IPv4-mapped addresses by their IPv4 form.
	Local, Remote         netip.Prefix
	LocalPort, RemotePort uint16
}
