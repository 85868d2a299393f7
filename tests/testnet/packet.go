// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// flowKey is one direction of a connection.
type flowKey struct {
	protocol            uint8
	source, destination netip.AddrPort
}

// Flow is one direction of a TCP or UDP conversation, as a Capture saw it.
type Flow struct {
	Protocol    uint8 // 6 or 17
	Source      netip.AddrPort
	Destination netip.AddrPort
	Packets     uint64
	Bytes       uint64 // of payload

	tail []byte // the end of the payload, for markers that go on
}

// parseFrame returns the flow and the payload of an Ethernet frame; ok is
// false for what is neither TCP nor UDP. IPv6 extension headers, which don't
// occur here, make a packet neither.
func parseFrame(b []byte) (key flowKey, payload []byte, ok bool) {
	if len(b) < 14 {
		return key, nil, false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		return parseIPv4(b[14:])
	case unix.ETH_P_IPV6:
		return parseIPv6(b[14:])
	}
	return key, nil, false
}

func parseIPv4(b []byte) (key flowKey, payload []byte, ok bool) {
	if len(b) < 20 {
		return key, nil, false
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || len(b) < header {
		return key, nil, false
	}
	// A total length of 0 is an offloaded packet that is too long for the
	// field.
	if total >= header && total <= len(b) {
		b = b[:total] // without the padding of short frames
	}
	src, _ := netip.AddrFromSlice(b[12:16])
	dst, _ := netip.AddrFromSlice(b[16:20])
	return parseTransport(b[9], src, dst, b[header:])
}

func parseIPv6(b []byte) (key flowKey, payload []byte, ok bool) {
	if len(b) < 40 {
		return key, nil, false
	}
	if n := int(binary.BigEndian.Uint16(b[4:])); n > 0 && 40+n <= len(b) {
		b = b[:40+n]
	}
	src, _ := netip.AddrFromSlice(b[8:24])
	dst, _ := netip.AddrFromSlice(b[24:40])
	return parseTransport(b[6], src, dst, b[40:])
}

func parseTransport(protocol uint8, src, dst netip.Addr, b []byte) (key flowKey, payload []byte, ok bool) {
	header := 8
	switch protocol {
	case unix.IPPROTO_TCP:
		if len(b) < 20 {
			return key, nil, false
		}
		header = int(b[12]>>4) * 4
	case unix.IPPROTO_UDP:
	default:
		return key, nil, false
	}
	if len(b) < header {
		return key, nil, false
	}
	return flowKey{
		protocol:    protocol,
		source:      netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[0:])),
		destination: netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
	}, b[header:], true
}

// countAcross counts marker in payload and across the border between tail and
// payload.
func countAcross(tail, payload, marker []byte) uint64 {
	n := uint64(bytes.Count(payload, marker))
	before := tail[max(0, len(tail)-(len(marker)-1)):]
	after := payload[:min(len(payload), len(marker)-1)]
	if len(before) > 0 && len(after) > 0 {
		n += uint64(bytes.Count(append(append([]byte(nil), before...), after...), marker))
	}
	return n
}
