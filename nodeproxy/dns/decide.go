// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"

	miekg "github.com/miekg/dns"
)

// decide looks at a message from a client. It returns the answer, or the query
// to forward, or neither for what deserves no answer.
func (s *Server) decide(raw []byte, stream bool) (answer []byte, forward *query) {
	defer func() {
		// The parser is not ours, and the bytes are anybody's.
		if fault := recover(); fault != nil {
			s.options.Logger.Error("read DNS query", "panic", fault, "stack", string(debug.Stack()))
			s.options.Metrics.Query(ResultRefused)
			answer, forward = nil, nil
		}
	}()
	// An answer to an answer could go on for ever.
	if len(raw) < headerSize || raw[atFlags]&flagResponse != 0 {
		s.options.Metrics.Query(ResultRefused)
		return nil, nil
	}
	q, msg, rcode := read(raw, stream)
	if rcode != miekg.RcodeSuccess {
		s.options.Metrics.Query(ResultRefused)
		return errorAnswer(raw, nil, rcode), nil
	}
	if reply, result := s.mesh(q, msg); reply != nil {
		s.options.Metrics.Query(result)
		return s.pack(q, msg, reply), nil
	}
	q.via = s.settings.Load().zone(msg.Question[0].Name)
	return nil, q
}

// overload answers a query that is beyond the limits.
func (s *Server) overload(q *query) []byte {
	s.options.Metrics.Query(ResultRefused)
	return errorAnswer(q.raw, q.question, miekg.RcodeServerFailure)
}

// read checks that a message is a query that can be answered, and returns an
// rcode other than success when it isn't.
func read(raw []byte, stream bool) (*query, *miekg.Msg, int) {
	if raw[atFlags]&maskOpcode != 0 {
		return nil, nil, miekg.RcodeNotImplemented
	}
	count := func(i int) uint16 { return binary.BigEndian.Uint16(raw[atCount+2*i:]) }
	// OPT and TSIG are all that a query has besides its question.
	if len(raw) > maxQuery || count(0) != 1 || count(1) != 0 || count(2) != 0 || count(3) > 2 {
		return nil, nil, miekg.RcodeFormatError
	}
	question, ok := questionOf(raw)
	msg := new(miekg.Msg)
	if !ok || msg.Unpack(raw) != nil || len(msg.Question) != 1 {
		return nil, nil, miekg.RcodeFormatError
	}
	switch msg.Question[0].Qtype {
	case miekg.TypeAXFR, miekg.TypeIXFR:
		return nil, nil, miekg.RcodeRefused
	}
	q := &query{raw: raw, question: question, stream: stream, size: miekg.MinMsgSize}
	if opt := msg.IsEdns0(); opt != nil {
		// Below 512 counts as 512, RFC 6891 section 6.2.3.
		q.size = min(max(int(opt.UDPSize()), miekg.MinMsgSize), maxAnswer)
	}
	if stream {
		q.size = miekg.MaxMsgSize
	}
	return q, msg, miekg.RcodeSuccess
}

// mesh answers what the mesh knows or owns, and returns nil for the rest. It
// notes in the query when the mesh knows the name nevertheless.
func (s *Server) mesh(q *query, msg *miekg.Msg) (*miekg.Msg, Result) {
	set := s.settings.Load()
	r := &replier{settings: set, request: msg, question: msg.Question[0]}
	name := strings.TrimSuffix(strings.ToLower(r.question.Name), ".")
	if name == "" {
		return nil, ""
	}
	if addr, ok := reverseAddr(name); ok {
		return s.reverse(r, addr)
	}
	inside := set.Domain != "" && miekg.IsSubDomain(set.Domain, r.question.Name)
	vips, found := s.options.Names.Host(name)
	switch {
	case found && (inside || addressed(r.question)):
		return r.addresses(vips)
	case found:
		q.exists = true
		return nil, ""
	case inside && name+"." == set.Domain:
		return r.apex()
	case inside:
		return r.noName(set.Domain)
	}
	return nil, ""
}

// addressed says which questions about a name outside the mesh's domain are
// the mesh's to answer: those that lead to an address. HTTPS and SVCB records
// of the world outside would give clients addresses that bypass the mesh
// (RFC 9460 section 7.3).
func addressed(q miekg.Question) bool {
	if q.Qclass != miekg.ClassINET && q.Qclass != miekg.ClassANY {
		return false
	}
	switch q.Qtype {
	case miekg.TypeA, miekg.TypeAAAA, miekg.TypeANY, miekg.TypeHTTPS, miekg.TypeSVCB:
		return true
	}
	return false
}

func (s *Server) reverse(r *replier, addr netip.Addr) (*miekg.Msg, Result) {
	name, found := s.options.Names.Reverse(addr)
	if found {
		return r.pointer(name)
	}
	for _, p := range r.settings.VirtualIPs {
		if p.Contains(addr) {
			return r.noName(reverseZone(p))
		}
	}
	return nil, ""
}

// reverseAddr returns the address that a name below in-addr.arpa or ip6.arpa
// stands for.
func reverseAddr(name string) (netip.Addr, bool) {
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(v4, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var b [4]byte
		for i, p := range parts {
			n, err := strconv.ParseUint(p, 10, 8)
			if err != nil {
				return netip.Addr{}, false
			}
			b[3-i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(v6) != 32*2-1 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		n, err := strconv.ParseUint(v6[2*i:2*i+1], 16, 4)
		if err != nil || (i < 31 && v6[2*i+1] != '.') {
			return netip.Addr{}, false
		}
		nibble := 31 - i
		b[nibble/2] |= byte(n) << (4 * (1 - nibble%2))
	}
	return netip.AddrFrom16(b), true
}

// reverseZone returns the name that stands for a range of addresses, or for
// the next larger one that has a name.
func reverseZone(p netip.Prefix) string {
	full, err := miekg.ReverseAddr(p.Masked().Addr().String())
	if err != nil {
		return "arpa."
	}
	bits, labels := 8, 4
	if p.Addr().Is6() {
		bits, labels = 4, 32
	}
	skip := labels - p.Bits()/bits
	for range skip {
		_, full, _ = strings.Cut(full, ".")
	}
	return full
}
