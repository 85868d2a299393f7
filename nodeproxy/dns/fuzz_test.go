// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"net"
	"slices"
	"testing"

	miekg "github.com/miekg/dns"
)

func seeds(f *testing.F) [][]byte {
	f.Helper()
	all := [][]byte{}
	for _, raw := range malformed {
		all = append(all, raw)
	}
	for _, m := range []*miekg.Msg{
		question("web.mesh.internal.", miekg.TypeA),
		question("WEB.mesh.internal.", miekg.TypeANY).SetEdns0(4096, true),
		question("nothing.mesh.internal.", miekg.TypeAAAA),
		question("api.example.com.", miekg.TypeTXT),
		question("1.0.240.240.in-addr.arpa.", miekg.TypePTR),
		question(`a\.b\000.example.org.`, miekg.TypeHTTPS),
		question(".", miekg.TypeNS),
	} {
		all = append(all, pack(f, m))
	}
	return all
}

// FuzzDecide feeds a client's bytes.
func FuzzDecide(f *testing.F) {
	for _, raw := range seeds(f) {
		f.Add(raw, false)
		f.Add(raw, true)
	}
	var set Settings
	set.Domain = "mesh.internal"
	o := Options{Settings: set, Names: names{}}
	s, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, raw []byte, stream bool) {
		before := slices.Clone(raw)
		answer, q := s.decide(raw, stream)
		if !bytes.Equal(raw, before) {
			t.Fatal("the query was changed")
		}
		if answer != nil && q != nil {
			t.Fatal("both answered and forwarded")
		}
		if q != nil {
			question, ok := questionOf(raw)
			if c := q.clone(); !ok || !bytes.Equal(c.question, question) || c.size < miekg.MinMsgSize {
				t.Fatalf("query %+v", c)
			}
			answer = s.overload(q)
		}
		if answer == nil {
			return
		}
		if raw[atFlags]&flagResponse != 0 {
			t.Fatal("an answer is answered")
		}
		if answer[0] != raw[0] || answer[1] != raw[1] || answer[atFlags]&flagResponse == 0 {
			t.Fatalf("header % x", answer[:headerSize])
		}
		var m miekg.Msg
		if err := m.Unpack(answer); err != nil {
			t.Fatalf("%v: % x", err, answer)
		}
		if !stream && len(answer) > maxAnswer {
			t.Fatalf("%d bytes", len(answer))
		}
	})
}

// FuzzAccept feeds a resolver's bytes.
func FuzzAccept(f *testing.F) {
	ask := question("x.example.org.", miekg.TypeA)
	raw := pack(f, ask)
	reply := new(miekg.Msg).SetReply(ask)
	for range 60 {
		reply.Answer = append(reply.Answer, &miekg.A{
			Hdr: miekg.RR_Header{Name: "x.example.org.", Rrtype: miekg.TypeA, Class: miekg.ClassINET}, A: net.IPv4(192, 0, 2, 1),
		})
	}
	f.Add(pack(f, reply), 512, false)
	f.Add(pack(f, reply)[:700], 512, true)
	reply.SetTsig("key.", miekg.HmacSHA256, 300, 0)
	f.Add(pack(f, reply), 512, false)
	for _, seed := range seeds(f) {
		f.Add(seed, 600, true)
	}
	f.Fuzz(func(t *testing.T, m []byte, size int, exists bool) {
		question, _ := questionOf(raw)
		q := &query{raw: raw, question: question, size: min(max(size, miekg.MinMsgSize), maxAnswer), exists: exists}
		m = slices.Clone(m)
		if len(m) >= 2 {
			copy(m, []byte{1, 2})
		}
		if q.accept(m, 0x0102) != nil {
			return
		}
		answer := q.fit(m)
		if len(answer) < headerSize || len(answer) > q.size {
			t.Fatalf("%d bytes, allowed %d", len(answer), q.size)
		}
		if !bytes.Equal(answer[:2], raw[:2]) {
			t.Fatalf("id % x, want % x", answer[:2], raw[:2])
		}
	})
}
