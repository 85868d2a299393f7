// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Owner is whose a socket is.
type Owner struct {
	// CgroupID and UID are those of the process that made it, at that time.
	// The cgroup is 0 before Linux 5.7.
	CgroupID uint64
	UID      uint32
}

// Protocol is that of a socket whose owner is looked for.
type Protocol uint8

// The protocols.
const (
	TCP Protocol = unix.IPPROTO_TCP
	UDP Protocol = unix.IPPROTO_UDP
)

// Owner returns the owner of the socket at local, which talks to remote; one of
// UDP needs not be connected. It is one look into the kernel's hash table. The
// error is ErrGone when there is none.
func (s *Socket) Owner(p Protocol, local, remote netip.AddrPort) (Owner, error) {
	id := sockID{local: local, remote: remote, cookie: noCookie}
	if p == UDP {
		// "src and dst are swapped for historical reasons" (udp_dump_one in
		// net/ipv4/udp_diag.c): the packet's are asked for, not the socket's.
		id.local, id.remote = remote, local
	}
	family := uint8(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_ACK)
	req.AddRawData(request(family, uint8(p), ^States(0), id))
	var found *message
	var broken error
	err := s.execute(req, func(raw []byte) bool {
		found, broken = parse(raw)
		return true
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		err = ErrGone
	case err == nil:
		err = broken
	}
	if err == nil && found == nil {
		err = ErrGone
	}
	if err != nil {
		return Owner{}, fmt.Errorf("find owner of %s: %w", local, err)
	}
	return Owner{CgroupID: found.cgroup, UID: found.uid}, nil
}
