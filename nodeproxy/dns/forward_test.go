// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func TestForward(t *testing.T) {
	var seen atomic.Pointer[miekg.Msg]
	var controlled sync.Map
	w := newWorld(t, func(o *Options) {
		o.Control = func(network, _ string, _ syscall.RawConn) error {
			controlled.Store(network, true)
			return nil
		}
	})
	to(w, upstream(t, func(rw miekg.ResponseWriter, r *miekg.Msg) {
		seen.Store(r.Copy())
		m := new(miekg.Msg).SetReply(r)
		m.Answer = []miekg.RR{&miekg.RFC3597{
			Hdr:   miekg.RR_Header{Name: r.Question[0].Name, Rrtype: 65280, Class: miekg.ClassINET, Ttl: 1},
			Rdata: "c0ffee",
		}}
		// Some resolvers do not keep the spelling.
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
		m.Truncated = strings.HasPrefix(r.Question[0].Name, "big") && rw.LocalAddr().Network() == "udp"
		_ = rw.WriteMsg(m)
	}))
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"wWw.ExAmPlE.oRg.", "big.example.org."} {
			q := question(name, 65280).SetEdns0(1400, true)
			q.IsEdns0().Option = []miekg.EDNS0{&miekg.EDNS0_LOCAL{Code: miekg.EDNS0LOCALSTART, Data: []byte("x")}}
			reply := w.ask(t, network, q)
			if len(reply.Answer) != 1 || reply.Answer[0].(*miekg.RFC3597).Rdata != "c0ffee" || reply.Truncated {
				t.Errorf("%s: answer %v", network, reply)
			}
			if reply.Question[0].Name != name {
				t.Errorf("%s: question %s, want %s", network, reply.Question[0].Name, name)
			}
			got := seen.Load()
			if got.Id == q.Id {
				t.Errorf("%s: the client's id was used", network)
			}
			if opt := got.IsEdns0(); got.Question[0].Name != name || opt == nil || len(opt.Option) != 1 || opt.UDPSize() != 1400 {
				t.Errorf("%s: the resolver saw %v", network, got)
			}
		}
	}
	for _, network := range []string{"udp4", "tcp4"} {
		if _, ok := controlled.Load(network); !ok {
			t.Errorf("Control was not called for %s", network)
		}
	}
	if got := w.counts.get(ResultForwarded); got != 4 {
		t.Errorf("%d queries counted as forwarded, want 4", got)
	}
}

func TestSizes(t *testing.T) {
	w := newWorld(t, nil)
	// About 1900 bytes, of which the resolver puts no more into a datagram
	// than it has been offered, and never more than 1232.
	to(w, upstream(t, func(rw miekg.ResponseWriter, r *miekg.Msg) {
		m := new(miekg.Msg).SetReply(r)
		for range 20 {
			m.Answer = append(m.Answer, &miekg.TXT{
				Hdr: miekg.RR_Header{Name: r.Question[0].Name, Rrtype: miekg.TypeTXT, Class: miekg.ClassINET},
				Txt: []string{strings.Repeat("x", 80)},
			})
		}
		size := miekg.MaxMsgSize
		if rw.LocalAddr().Network() == "udp" {
			size = miekg.MinMsgSize
			if opt := r.IsEdns0(); opt != nil {
				m.SetEdns0(1232, false)
				size = min(int(opt.UDPSize()), 1232)
			}
		}
		m.Truncate(size)
		_ = rw.WriteMsg(m)
	}))
	for _, tt := range []struct {
		name, network string
		offer         uint16
		whole         bool
	}{
		{"nothing offered", "udp", 0, false},
		{"too little offered", "udp", 100, false},
		{"not enough offered", "udp", 1000, false},
		{"more offered than the resolver sends", "udp", 4096, true},
		{"most offered", "udp", 65535, true},
		{"TCP", "tcp", 0, true},
		{"TCP with an offer", "tcp", 512, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := question("long.example.org.", miekg.TypeTXT)
			if tt.offer > 0 {
				q.SetEdns0(tt.offer, false)
			}
			reply := w.ask(t, tt.network, q)
			if reply.Truncated == tt.whole || (len(reply.Answer) == 20) != tt.whole {
				t.Errorf("truncated %v, %d records", reply.Truncated, len(reply.Answer))
			}
			reply.Compress = true
			if limit := max(int(tt.offer), 512); tt.network == "udp" && reply.Len() > limit {
				t.Errorf("%d bytes, %d offered", reply.Len(), limit)
			}
		})
	}
}

// TestNameOfBothWorlds asks for a record of a name whose address is the mesh's
// and whose other records are the outside world's.
func TestNameOfBothWorlds(t *testing.T) {
	w := newWorld(t, nil)
	to(w, upstream(t, func(rw miekg.ResponseWriter, r *miekg.Msg) {
		_ = rw.WriteMsg(new(miekg.Msg).SetRcode(r, miekg.RcodeNameError))
	}))
	if reply := w.ask(t, "udp", question("api.example.com.", miekg.TypeMX)); reply.Rcode != miekg.RcodeSuccess {
		t.Errorf("rcode %s for a name that exists", miekg.RcodeToString[reply.Rcode])
	}
	if reply := w.ask(t, "udp", question("none.example.com.", miekg.TypeMX)); reply.Rcode != miekg.RcodeNameError {
		t.Errorf("rcode %s for a name that doesn't", miekg.RcodeToString[reply.Rcode])
	}
}

// TestNameBesideTheDomain asks for names that only look like the mesh's.
func TestNameBesideTheDomain(t *testing.T) {
	w := newWorld(t, nil)
	to(w, upstream(t, echo))
	for _, name := range []string{"xmesh.internal.", `x\.mesh.internal.`, "internal.", "mesh.internal.example.", "."} {
		if reply := w.ask(t, "udp", question(name, miekg.TypeA)); len(reply.Answer) != 1 {
			t.Errorf("%s: %v", name, reply)
		}
	}
}

func TestDeadUpstreams(t *testing.T) {
	answering := func(rcode int) miekg.HandlerFunc {
		return func(rw miekg.ResponseWriter, r *miekg.Msg) { _ = rw.WriteMsg(new(miekg.Msg).SetRcode(r, rcode)) }
	}
	for _, tt := range []struct {
		name   string
		first  func(testing.TB) netip.AddrPort
		alone  int // rcode when nobody else is there
		result Result
	}{
		{"refusing", refusing, miekg.RcodeServerFailure, ResultFailed},
		{"silent", silent, miekg.RcodeServerFailure, ResultTimeout},
		{"failing", func(t testing.TB) netip.AddrPort { return upstream(t, answering(miekg.RcodeServerFailure)) }, miekg.RcodeServerFailure, ResultForwarded},
		{"unwilling", func(t testing.TB) netip.AddrPort { return upstream(t, answering(miekg.RcodeRefused)) }, miekg.RcodeRefused, ResultForwarded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, nil)
			first, second := tt.first(t), upstream(t, echo)
			to(w, first, second)
			for range 2 {
				if reply := w.ask(t, "udp", question("x.example.org.", miekg.TypeA)); len(reply.Answer) != 1 {
					t.Errorf("with another resolver: %v", reply)
				}
			}
			to(w, first)
			q := question("x.example.org.", miekg.TypeA)
			reply := w.ask(t, "udp", q)
			if reply.Rcode != tt.alone || reply.Question[0] != q.Question[0] {
				t.Errorf("alone: %v", reply)
			}
			if w.counts.get(tt.result) == 0 {
				t.Errorf("not counted as %s", tt.result)
			}
		})
	}
}

func TestUpstreamThatIsDownComesLast(t *testing.T) {
	now := time.Unix(1000, 0)
	f := newForwarder(Options{Now: func() time.Time { return now }, Logger: newLogger()}, func(a netip.AddrPort) bool { return a.Port() == 9 })
	a, b, own := netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("192.0.2.2:53"), netip.MustParseAddrPort("192.0.2.3:9")
	up := &upstreams{servers: []netip.AddrPort{own, a, b}}
	expect := func(when string, want ...netip.AddrPort) {
		t.Helper()
		if got := f.order(up); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	expect("at first", a, b)
	f.judge(a, errors.New("no answer"))
	expect("down", b, a)
	f.judge(b, errors.New("no answer"))
	expect("both down", a, b)
	f.judge(b, nil)
	expect("up", b, a)
	now = now.Add(sulk)
	expect("later", a, b)

	up.rotate = true
	up.servers = []netip.AddrPort{a, b}
	firsts := map[netip.AddrPort]int{}
	for range 10 {
		firsts[f.order(up)[0]]++
	}
	if firsts[a] != 5 || firsts[b] != 5 {
		t.Errorf("rotation: %v", firsts)
	}
}

// TestNeverToOurselves makes the server its own resolver.
func TestNeverToOurselves(t *testing.T) {
	w := newWorld(t, nil)
	to(w, netip.MustParseAddrPort(w.udp), netip.MustParseAddrPort(w.tcp))
	if reply := w.ask(t, "udp", question("x.example.org.", miekg.TypeA)); reply.Rcode != miekg.RcodeServerFailure {
		t.Error(reply)
	}
	if got := w.counts.get(ResultFailed); got != 1 {
		t.Errorf("counted %d failures, want 1", got)
	}
}

// TestForgedAnswers sends answers that are none before the right one.
func TestForgedAnswers(t *testing.T) {
	pc, l := samePort(t)
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, 512)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		var q miekg.Msg
		if err := q.Unpack(buf[:n]); err != nil {
			t.Error(err)
			return
		}
		send := func(change func(*miekg.Msg), raw func([]byte) []byte) {
			m := new(miekg.Msg).SetReply(&q)
			m.Answer = []miekg.RR{&miekg.A{
				Hdr: miekg.RR_Header{Name: q.Question[0].Name, Rrtype: miekg.TypeA, Class: miekg.ClassINET}, A: net.IPv4(6, 6, 6, 6),
			}}
			change(m)
			b, err := m.Pack()
			if err != nil {
				t.Error(err)
			}
			if raw != nil {
				b = raw(b)
			}
			_, _ = pc.WriteTo(b, from)
		}
		send(func(m *miekg.Msg) { m.Id++ }, nil)
		send(func(m *miekg.Msg) { m.Response = false }, nil)
		send(func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }, nil)
		send(func(m *miekg.Msg) { m.Question[0].Name = "y.example.org." }, nil)
		send(func(m *miekg.Msg) { m.Question[0].Qtype = miekg.TypeAAAA }, nil)
		send(func(m *miekg.Msg) { m.Question = nil }, nil)
		send(func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }, nil)
		send(func(*miekg.Msg) {}, func(b []byte) []byte { return b[:11] })
		send(func(*miekg.Msg) {}, func(b []byte) []byte { return b[:14] })
		send(func(*miekg.Msg) {}, func([]byte) []byte { return nil })
		send(func(m *miekg.Msg) { m.Answer[0].(*miekg.A).A = net.IPv4(192, 0, 2, 1) }, nil)
	}()
	w := newWorld(t, nil)
	w.forward.use([]netip.AddrPort{l.Addr().(*net.TCPAddr).AddrPort()})
	reply := w.ask(t, "udp", question("x.example.org.", miekg.TypeA))
	if got := data(reply.Answer); !slices.Equal(got, []string{"192.0.2.1"}) {
		t.Errorf("answer %v", reply)
	}
	_ = pc.Close()
	<-served
}

// TestBareError has a resolver that returns nothing but a header.
func TestBareError(t *testing.T) {
	w := newWorld(t, nil)
	to(w, upstream(t, func(rw miekg.ResponseWriter, r *miekg.Msg) {
		m := new(miekg.Msg).SetRcode(r, miekg.RcodeFormatError)
		m.Question = nil
		_ = rw.WriteMsg(m)
	}))
	if reply := w.ask(t, "udp", question("x.example.org.", miekg.TypeA)); reply.Rcode != miekg.RcodeFormatError {
		t.Error(reply)
	}
}

func TestTruncatedAndNoTCP(t *testing.T) {
	w := newWorld(t, nil)
	pc, l := samePort(t)
	_ = l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			buf[atFlags] |= flagResponse | flagTruncated
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	to(w, l.Addr().(*net.TCPAddr).AddrPort())
	if reply := w.ask(t, "udp", question("x.example.org.", miekg.TypeA)); !reply.Truncated || reply.Rcode != miekg.RcodeSuccess {
		t.Errorf("over UDP: %v", reply)
	}
	if reply := w.ask(t, "tcp", question("x.example.org.", miekg.TypeA)); reply.Rcode != miekg.RcodeServerFailure {
		t.Errorf("over TCP: %v", reply)
	}
	_ = pc.Close()
	<-served
}

func TestResolvConf(t *testing.T) {
	addrs := func(list ...string) (all []netip.AddrPort) {
		for _, a := range list {
			all = append(all, netip.MustParseAddrPort(a))
		}
		return all
	}
	for _, tt := range []struct {
		name, content string
		want          upstreams
	}{
		{"empty", "", upstreams{addrs("127.0.0.1:53"), 5 * time.Second, 2, false}},
		{"comments", "# nameserver 1.1.1.1\n; x\nsearch example.org\n", upstreams{addrs("127.0.0.1:53"), 5 * time.Second, 2, false}},
		{
			"servers", "nameserver 192.0.2.1\nnameserver  2001:db8::1 \nnameserver fe80::1%lo\nnameserver bogus\nnameserver\n",
			upstreams{addrs("192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%lo]:53"), 5 * time.Second, 2, false},
		},
		{
			"options", "nameserver 192.0.2.1\noptions ndots:2 timeout:1 attempts:3\noptions rotate\n",
			upstreams{addrs("192.0.2.1:53"), time.Second, 3, true},
		},
		{
			"too much", "nameserver 192.0.2.1\noptions timeout:9999999999999 attempts:99 norotate\n",
			upstreams{addrs("192.0.2.1:53"), 30 * time.Second, 5, false},
		},
		{
			"too little", "nameserver 192.0.2.1\noptions timeout:-1 attempts:0\n",
			upstreams{addrs("192.0.2.1:53"), time.Second, 1, false},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := parseResolvConf([]byte(tt.content))
			if !slices.Equal(got.servers, tt.want.servers) || got.timeout != tt.want.timeout ||
				got.attempts != tt.want.attempts || got.rotate != tt.want.rotate {
				t.Errorf("%+v, want %+v", *got, tt.want)
			}
		})
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	now := time.Unix(1000, 0)
	r := &resolvConf{path: path, now: func() time.Time { return now }, log: newLogger()}
	expect := func(when, want string) {
		t.Helper()
		if got := r.upstreams().servers[0].Addr().String(); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	write := func(server string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	expect("without a file", "127.0.0.1")
	write("192.0.2.1")
	expect("at once", "127.0.0.1")
	now = now.Add(lookEvery)
	expect("when it appears", "192.0.2.1")
	write("192.0.2.2")
	now = now.Add(lookEvery)
	expect("when it changes", "192.0.2.2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(lookEvery)
	expect("when it vanishes", "192.0.2.2")
	write("192.0.2.3")
	now = now.Add(lookEvery)
	expect("when it is back", "192.0.2.3")
}

func TestQuestionOf(t *testing.T) {
	raw, err := question("a.b.", miekg.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := questionOf(raw)
	if want := "\x01a\x01b\x00\x00\x01\x00\x01"; !ok || string(got) != want {
		t.Errorf("questionOf = %q, %v", got, ok)
	}
	for n := range raw {
		if _, ok := questionOf(raw[:n]); ok {
			t.Errorf("found in the first %d bytes", n)
		}
	}
	pointer := append(slices.Clone(raw[:headerSize]), 0xc0, headerSize)
	pointer = binary.BigEndian.AppendUint32(pointer, 0x00010001)
	if _, ok := questionOf(pointer); ok {
		t.Error("a name that points to itself is accepted")
	}
}

// TestZones: what is below a zone goes to the zone's resolvers, and nothing else.
func TestZones(t *testing.T) {
	tagged := func(tag string) []netip.AddrPort {
		return []netip.AddrPort{upstream(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
			m := new(miekg.Msg).SetReply(r)
			m.Answer = []miekg.RR{&miekg.TXT{
				Hdr: miekg.RR_Header{Name: r.Question[0].Name, Rrtype: miekg.TypeTXT, Class: miekg.ClassINET}, Txt: []string{tag},
			}}
			_ = w.WriteMsg(m)
		})}
	}
	w := newWorld(t, func(o *Options) {
		o.Upstreams = tagged("others")
		o.Zones = []Zone{{Domain: "Corp.Example", Upstreams: tagged("agent")}}
	})
	for name, want := range map[string]string{
		"db.service.corp.example.": "agent", "corp.example.": "agent", "DB.Service.CORP.example.": "agent",
		"notcorp.example.": "others", "example.": "others", "corp.example.org.": "others", "db.service.consul.": "others",
	} {
		if reply := w.ask(t, "udp", question(name, miekg.TypeTXT)); !slices.Equal(data(reply.Answer), []string{`"` + want + `"`}) {
			t.Errorf("%s is answered by %v, want %s", name, reply.Answer, want)
		}
	}
}
