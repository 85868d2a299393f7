// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"encoding/binary"
	"net/netip"

	"github.com/meshproxy/meshproxy/bpf"
)

// Addresses are kept in their 16-byte form, IPv4 mapped, as words in memory
// order.

func toWords(a netip.Addr) (words [4]uint32) {
	b := a.As16()
	for i := range words {
		words[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return words
}

func fromWords(words [4]uint32) netip.Addr {
	var b [16]byte
	for i, w := range words {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

func toAddress(a netip.AddrPort) bpf.CaptureAddress {
	return bpf.CaptureAddress{Ip: toWords(a.Addr()), Port: a.Port()}
}

func fromAddress(a bpf.CaptureAddress) netip.AddrPort {
	return netip.AddrPortFrom(fromWords(a.Ip), a.Port)
}
