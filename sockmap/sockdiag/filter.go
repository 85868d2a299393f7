// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Operations of the filter language, enum in linux/inet_diag.h.
const (
	bcLocal  = 7 // INET_DIAG_BC_S_COND
	bcRemote = 8 // INET_DIAG_BC_D_COND

	sizeofOp       = 4 // struct inet_diag_bc_op
	sizeofHostCond = 8 // struct inet_diag_hostcond without address
)

// bytecode compiles the filter for inet_diag_bc_run in the kernel's
// net/ipv4/inet_diag.c: conditions that all must hold, each of which goes on
// with the next one or else jumps past the end, which rejects the socket.
func (f *Filter) bytecode() []byte {
	conditions := [][]byte{
		hostCond(f.Local, f.LocalPort),
		hostCond(f.Remote, f.RemotePort),
	}
	rest := 0
	for _, c := range conditions {
		if c != nil {
			rest += sizeofOp + len(c)
		}
	}
	var code []byte
	for i, c := range conditions {
		if c == nil {
			continue
		}
		size := sizeofOp + len(c)
		code = append(code, bcLocal+byte(i), byte(size))
		code = native.AppendUint16(code, uint16(rest+sizeofOp))
		code = append(code, c...)
		rest -= size
	}
	return code
}

// hostCond makes a struct inet_diag_hostcond, or nil for no condition. A
// condition for IPv4 holds for IPv4-mapped addresses as well.
func hostCond(p netip.Prefix, port uint16) []byte {
	if !p.IsValid() && port == 0 {
		return nil
	}
	family, bits := uint8(unix.AF_UNSPEC), 0
	var addr []byte
	if p.IsValid() {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		family, bits, addr = unix.AF_INET6, p.Bits(), p.Addr().AsSlice()
		if p.Addr().Is4() {
			family = unix.AF_INET
		}
	}
	anyOrPort := ^uint32(0) // -1
	if port != 0 {
		anyOrPort = uint32(port)
	}
	b := make([]byte, 0, sizeofHostCond+len(addr))
	b = append(b, family, byte(bits), 0, 0)
	b = native.AppendUint32(b, anyOrPort)
	return append(b, addr...)
}
