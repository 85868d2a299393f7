// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	sizeofRequest = 56 // struct inet_diag_req_v2
	sizeofMessage = 72 // struct inet_diag_msg
	offsetOfID    = 4  // of struct inet_diag_sockid in struct inet_diag_msg
	sizeofAttr    = 4  // struct nlattr

	inetDiagReqBytecode = 1 // INET_DIAG_REQ_BYTECODE

	// noCookie is INET_DIAG_NOCOOKIE twice: whatever the cookie.
	noCookie = ^uint64(0)
)

var errShort = errors.New("message of inet_diag is too short")

var native = binary.NativeEndian

// sockID is struct inet_diag_sockid.
type sockID struct {
	local, remote netip.AddrPort
	ifindex       uint32
	cookie        uint64
}

// request makes a struct inet_diag_req_v2. IPv4 addresses are written mapped
// for an AF_INET6 socket.
func request(family, protocol uint8, states States, id sockID) []byte {
	b := make([]byte, 0, sizeofRequest)
	b = append(b, family, protocol, 0, 0)
	b = native.AppendUint32(b, uint32(states))
	b = binary.BigEndian.AppendUint16(b, id.local.Port())
	b = binary.BigEndian.AppendUint16(b, id.remote.Port())
	b = appendAddr(b, family, id.local.Addr())
	b = appendAddr(b, family, id.remote.Addr())
	b = native.AppendUint32(b, id.ifindex)
	b = native.AppendUint32(b, uint32(id.cookie))
	return native.AppendUint32(b, uint32(id.cookie>>32))
}

func appendAddr(b []byte, family uint8, a netip.Addr) []byte {
	var field [16]byte
	switch {
	case !a.IsValid():
	case family == unix.AF_INET6:
		field = a.As16()
	case a.Is4():
		four := a.As4()
		copy(field[:], four[:])
	}
	return append(b, field[:]...)
}

// message is a struct inet_diag_msg and those of its attributes that matter
// here.
type message struct {
	family        uint8
	state         States
	local, remote netip.AddrPort
	ifindex       uint32
	cookie        uint64
	uid, inode    uint32
	v6only        bool
	cgroup        uint64
}

func parse(b []byte) (*message, error) {
	if len(b) < sizeofMessage {
		return nil, errShort
	}
	id := b[offsetOfID:]
	m := &message{
		family:  b[0],
		state:   1 << (b[1] & 31),
		ifindex: native.Uint32(id[36:]),
		cookie:  uint64(native.Uint32(id[40:])) | uint64(native.Uint32(id[44:]))<<32,
		uid:     native.Uint32(b[64:]),
		inode:   native.Uint32(b[68:]),
	}
	m.local = addrPort(m.family, id[4:20], binary.BigEndian.Uint16(id[0:]))
	m.remote = addrPort(m.family, id[20:36], binary.BigEndian.Uint16(id[2:]))

	for b = b[sizeofMessage:]; len(b) >= sizeofAttr; {
		size, typ := int(native.Uint16(b)), native.Uint16(b[2:])
		if size < sizeofAttr || size > len(b) {
			return nil, errShort
		}
		value := b[sizeofAttr:size]
		switch {
		case typ == netlink.INET_DIAG_SKV6ONLY && len(value) >= 1:
			m.v6only = value[0] != 0
		case typ == netlink.INET_DIAG_CGROUP_ID && len(value) >= 8:
			m.cgroup = native.Uint64(value)
		}
		// Attributes begin at multiples of 4 (NLA_ALIGN).
		b = b[min(len(b), (size+3)&^3):]
	}
	return m, nil
}

func addrPort(family uint8, b []byte, port uint16) netip.AddrPort {
	if family == unix.AF_INET6 {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), port)
}
