// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func newLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func pack(t testing.TB, m *miekg.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dialTCP(t *testing.T, w *world) *miekg.Conn {
	t.Helper()
	c, err := net.Dial("tcp", w.tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &miekg.Conn{Conn: c}
}

// gate is a resolver that answers names beginning with "slow" when it is told.
func gate(t *testing.T) (at netip.AddrPort, arrived chan string, open func()) {
	arrived = make(chan string, 100)
	gate := make(chan struct{})
	open = sync.OnceFunc(func() { close(gate) })
	at = upstream(t, func(w miekg.ResponseWriter, r *miekg.Msg) {
		name := r.Question[0].Name
		if len(name) > 4 && name[:4] == "slow" {
			arrived <- name
			<-gate
		}
		echo(w, r)
	})
	// Runs before the resolver is shut down.
	t.Cleanup(open)
	return at, arrived, open
}

func TestPipelining(t *testing.T) {
	w := newWorld(t, nil)
	at, arrived, open := gate(t)
	w.forward.use([]netip.AddrPort{at})
	c := dialTCP(t, w)
	slow, quick, mesh := question("slow.example.org.", miekg.TypeA), question("quick.example.org.", miekg.TypeA), question("web.", miekg.TypeA)
	for _, q := range []*miekg.Msg{slow, quick, mesh} {
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	// The client is done asking, not listening.
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-arrived
	got := map[uint16]bool{}
	for range 2 {
		m, err := c.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		got[m.Id] = true
	}
	if !got[quick.Id] || !got[mesh.Id] {
		t.Error("the slow query holds up others")
	}
	open()
	m, err := c.ReadMsg()
	if err != nil || m.Id != slow.Id || len(m.Answer) != 1 {
		t.Errorf("the slow answer: %v, %v", m, err)
	}
	if _, err := c.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("afterwards: %v", err)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.MaxForwarded, o.MaxForwardedPerClient = 3, 2
		o.Client = func(a Asker) string { return a.Address.String() }
	})
	at, arrived, open := gate(t)
	w.forward.use([]netip.AddrPort{at})
	conn := func() *miekg.Conn {
		c, err := net.Dial("udp", w.udp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return &miekg.Conn{Conn: c}
	}
	send := func(c *miekg.Conn, name string) {
		if err := c.WriteMsg(question(name, miekg.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(c *miekg.Conn, who string, rcode int) {
		t.Helper()
		m, err := c.ReadMsg()
		if err != nil || m.Rcode != rcode {
			t.Fatalf("%s: %v, %v, want %s", who, m, err, miekg.RcodeToString[rcode])
		}
	}
	a, b := conn(), conn()
	for i := range 2 {
		send(a, fmt.Sprintf("slow%d.example.org.", i))
		<-arrived
	}
	send(a, "quick.example.org.")
	expect(a, "beyond the client's limit", miekg.RcodeServerFailure)
	send(b, "slow2.example.org.")
	<-arrived
	send(b, "quick.example.org.")
	expect(b, "beyond the limit of all", miekg.RcodeServerFailure)
	send(b, "web.")
	expect(b, "a name of the mesh", miekg.RcodeSuccess)
	if got := w.counts.get(ResultRefused); got != 2 {
		t.Errorf("%d refused, want 2", got)
	}
	open()
	for range 2 {
		expect(a, "slow", miekg.RcodeSuccess)
	}
	expect(b, "slow", miekg.RcodeSuccess)
	w.Close()
	if n := len(w.queries.clients); w.queries.sum != 0 || n != 0 {
		t.Errorf("limiter holds %d places of %d clients", w.queries.sum, n)
	}
}

func TestConnectionLimit(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.MaxConnections, o.MaxConnectionsPerClient = 2, 2
	})
	works := func(c *miekg.Conn) error {
		if err := c.WriteMsg(question("web.", miekg.TypeA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	a, b := dialTCP(t, w), dialTCP(t, w)
	for _, c := range []*miekg.Conn{a, b} {
		if err := works(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := works(dialTCP(t, w)); err == nil {
		t.Error("a third connection is served")
	}
	_ = a.Close()
	deadline := time.Now().Add(time.Minute)
	for works(dialTCP(t, w)) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection is never free")
		}
	}
}

var malformed = map[string][]byte{
	"empty":            {},
	"one byte":         {0},
	"header cut off":   make([]byte, headerSize-1),
	"no question":      make([]byte, headerSize),
	"answer":           {0, 1, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1},
	"notify":           {0, 1, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1},
	"update":           {0, 1, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1},
	"two questions":    {0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1},
	"question cut off": {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w', 'e'},
	"pointer":          {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1},
	"record cut off":   {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 41},
	"transfer":         {0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 252, 0, 1},
	"all ones":         {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
}

func TestMalformedQueries(t *testing.T) {
	s := newWorld(t, nil)
	want := map[string]int{
		"no question": miekg.RcodeFormatError, "notify": miekg.RcodeNotImplemented, "update": miekg.RcodeNotImplemented,
		"two questions": miekg.RcodeFormatError, "question cut off": miekg.RcodeFormatError, "pointer": miekg.RcodeFormatError,
		"record cut off": miekg.RcodeFormatError, "transfer": miekg.RcodeRefused,
	}
	for name, raw := range malformed {
		t.Run(name, func(t *testing.T) {
			answer, q := s.decide(raw, false)
			if q != nil {
				t.Error("it is forwarded")
			}
			rcode, answered := want[name]
			if answered != (answer != nil) {
				t.Fatalf("answer %v", answer)
			}
			if answered && (int(answer[atRcode]&maskRcode) != rcode || len(answer) != headerSize) {
				t.Errorf("answer %v", answer)
			}
		})
	}
}

// TestMalformedTraffic sends rubbish to both listeners and then asks.
func TestMalformedTraffic(t *testing.T) {
	w := newWorld(t, nil)
	udp, err := net.Dial("udp", w.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, raw := range malformed {
		if _, err := udp.Write(raw); err != nil {
			t.Fatal(err)
		}
		c := dialTCP(t, w)
		// Length and message, then less than a length.
		_ = writeMessage(c.Conn, raw)
		_, _ = c.Conn.Write([]byte{0})
	}
	if _, err := udp.Write(make([]byte, 2*maxQuery)); err != nil {
		t.Fatal(err)
	}
	long := dialTCP(t, w)
	if err := writeMessage(long.Conn, make([]byte, maxQuery+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := long.ReadMsg(); err == nil {
		t.Error("a query beyond all measure is answered")
	}
	for _, network := range []string{"udp", "tcp"} {
		if reply := w.ask(t, network, question("web.", miekg.TypeA)); len(reply.Answer) != 1 {
			t.Error(reply)
		}
	}
}

func TestPanic(t *testing.T) {
	w := newWorld(t, nil)
	raw := pack(t, question("panic.mesh.internal.", miekg.TypeA))
	if answer, q := w.decide(raw, false); answer != nil || q != nil {
		t.Errorf("answer %v", answer)
	}
	if w.ask(t, "udp", question("web.", miekg.TypeA)) == nil {
		t.Error("no answer")
	}
}

func TestListenersComeAndGo(t *testing.T) {
	w := newWorld(t, nil)
	for range 3 {
		pc, l := samePort(t)
		address := l.Addr().String()
		stopPackets, err := w.ServePacket("a", pc)
		if err != nil {
			t.Fatal(err)
		}
		stopStreams, err := w.ServeStream("a", l)
		if err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"udp", "tcp"} {
			c := miekg.Client{Net: network}
			if _, _, err := c.Exchange(question("web.", miekg.TypeA), address); err != nil {
				t.Error(err)
			}
		}
		if !w.isOwn(netip.MustParseAddrPort(address)) {
			t.Error("the listener is not known as ours")
		}
		idle, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		stopPackets()
		stopStreams()
		stopStreams()
		_ = idle.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
			t.Errorf("an idle connection after stop: %v", err)
		}
		_ = idle.Close()
		if w.isOwn(netip.MustParseAddrPort(address)) {
			t.Error("the listener is still known as ours")
		}
		again, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatalf("listen again: %v", err)
		}
		_ = again.Close()
	}
	if w.ask(t, "udp", question("web.", miekg.TypeA)) == nil {
		t.Error("the other listener stopped as well")
	}
}

// errTimeout returns err when it is a timeout.
func errTimeout(err error) error {
	if timedOut(err) {
		return err
	}
	return errors.New("no timeout")
}

func TestStopWhileForwarding(t *testing.T) {
	w := newWorld(t, nil)
	at, arrived, _ := gate(t)
	w.forward.use([]netip.AddrPort{at})
	c := dialTCP(t, w)
	if err := c.WriteMsg(question("slow.example.org.", miekg.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	w.Close()
	if m, err := c.ReadMsg(); err == nil {
		t.Errorf("an answer after Close: %v", m)
	}
}

func TestListenersThatCannotServe(t *testing.T) {
	w := newWorld(t, nil)
	for _, address := range []string{"0.0.0.0:0", "[::]:0"} {
		pc, err := net.ListenPacket("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ServePacket("x", pc); !errors.Is(err, ErrUnspecified) {
			t.Errorf("ServePacket on %s: %v", address, err)
		}
		if err := pc.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the socket is still open: %v", err)
		}
	}
	w.Close()
	w.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ServeStream("x", l); !errors.Is(err, ErrClosed) {
		t.Errorf("ServeStream after Close: %v", err)
	}
}

func TestConcurrency(t *testing.T) {
	w := newWorld(t, func(o *Options) {
		o.MaxForwarded, o.MaxForwardedPerClient = 10000, 10000
	})
	at := upstream(t, echo)
	w.forward.use([]netip.AddrPort{at})
	var clients sync.WaitGroup
	for i := range 16 {
		clients.Go(func() {
			network := []string{"udp", "tcp"}[i%2]
			for j := range 40 {
				name, want := fmt.Sprintf("n%d.i%d.example.org.", j, i), 1
				switch j % 4 {
				case 0:
					name = "web.mesh.internal."
				case 1:
					name, want = "no.example.org.", 0
				case 2:
					if err := w.Apply(Settings{Domain: "mesh.internal", Upstreams: []netip.AddrPort{at}}); err != nil {
						t.Error(err)
					}
				}
				reply := w.ask(t, network, question(name, miekg.TypeA))
				if len(reply.Answer) != want {
					t.Errorf("%s: %v", name, reply)
				}
			}
		})
	}
	clients.Wait()
	w.Close()
	if w.queries.sum != 0 || len(w.queries.clients) != 0 {
		t.Errorf("limiter still holds %d", w.queries.sum)
	}
}

func TestAsker(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:5": "s 127.0.0.1:5", "[::1]:5": "s [::1]:5", "192.0.2.1:5": "s 192.0.2.1",
	} {
		if got := (Asker{Scope: "s", Network: "udp", Address: netip.MustParseAddrPort(in)}).String(); got != want {
			t.Errorf("asker at %s is %q, want %q", in, got, want)
		}
	}
}
