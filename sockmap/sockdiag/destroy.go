// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Destroy closes a connection of whatever process: its owner gets
// ECONNABORTED, the peer a reset. Of the connection, the addresses, IPv6,
// Ifindex and Cookie count.
//
// It returns ErrGone when there is no such connection, ErrNoDestroy when the
// kernel can't, ErrNeedsCookie when the connection has none, and unix.EPERM
// without CAP_NET_ADMIN over the namespace.
func (s *Socket) Destroy(c *Connection) error {
	err := ErrNeedsCookie
	// The kernel falls back to the listener on the local port when it finds
	// no connection (inet_diag_find_one_icsk); only the cookie keeps it from
	// closing that instead.
	if c.Cookie != 0 {
		err = s.destroy(c, c.Cookie)
	}
	if err != nil {
		return fmt.Errorf("destroy connection %s to %s: %w", c.Local, c.Remote, err)
	}
	return nil
}

func (s *Socket) destroy(c *Connection, cookie uint64) error {
	family := uint8(unix.AF_INET)
	if c.IPv6 || c.Local.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	req.AddRawData(request(family, unix.IPPROTO_TCP, ^States(0),
		sockID{local: c.Local, remote: c.Remote, ifindex: c.Ifindex, cookie: cookie}))
	return destroyError(s.execute(req, func([]byte) bool { return true }))
}

// ProbeDestroy returns nil when the kernel can close other processes'
// connections, and ErrNoDestroy when it can't. It says nothing of privileges.
func (s *Socket) ProbeDestroy() error {
	// Nothing can be connected from port 0 to port 0, and a connection that
	// isn't found is only reported by who would have destroyed it.
	zero := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	err := s.destroy(&Connection{Local: zero, Remote: zero}, noCookie)
	if err != nil && !errors.Is(err, ErrGone) {
		return fmt.Errorf("probe for SOCK_DESTROY: %w", err)
	}
	return nil
}

func destroyError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		// ESTALE: there is a connection, with another cookie.
		return ErrGone
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		// EINVAL: the kernel does not know the message.
		return ErrNoDestroy
	default:
		return err
	}
}
