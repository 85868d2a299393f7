// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a mesh of two services, a namespace and a name taken from outside.
type names struct{}

var (
	webV4 = netip.MustParseAddr("240.240.0.1")
	webV6 = netip.MustParseAddr("2001:2::1")
	dbV4  = netip.MustParseAddr("240.240.0.2")
)

func (names) Host(name string) ([]netip.Addr, bool) {
	switch name {
	case "web", "web.mesh.internal", "api.example.com":
		return []netip.Addr{webV4, webV6}, true
	case "db.shop.mesh.internal":
		return []netip.Addr{dbV4}, true
	case "shop.mesh.internal":
		return nil, true
	case "panic.mesh.internal":
		panic("of the names")
	}
	return nil, false
}

func (names) Reverse(vip netip.Addr) (string, bool) {
	switch vip {
	case webV4, webV6:
		return "web.mesh.internal", true
	}
	return "", false
}

// counts are metrics that tests wait for and read.
type counts struct {
	mu sync.Mutex
	of map[Result]int
}

func (c *counts) Query(r Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[Result]int{}
	}
	c.of[r]++
}

func (c *counts) Forwarded(time.Duration) {}

func (c *counts) get(r Result) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[r]
}

// world is a server with one listener of each kind.
type world struct {
	*Server
	udp, tcp string
	packets  *net.UDPConn // at udp; the server's
	counts   *counts
}

func newWorld(t testing.TB, change func(*Options)) *world {
	t.Helper()
	w := &world{counts: &counts{}}
	o := Options{
		Settings: Settings{
			Domain:     "Mesh.Internal",
			VirtualIPs: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
		},
		Names:      names{},
		ResolvConf: "/nonexistent/resolv.conf",
		Metrics:    w.counts,
	}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w.Server = s
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.packets, w.udp = pc.(*net.UDPConn), pc.LocalAddr().String()
	if _, err := s.ServePacket("test", pc); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.tcp = l.Addr().String()
	if _, err := s.ServeStream("test", l); err != nil {
		t.Fatal(err)
	}
	return w
}

// ask sends a query over "udp" or "tcp" with miekg's own client.
func (w *world) ask(t testing.TB, network string, m *miekg.Msg) *miekg.Msg {
	t.Helper()
	to := w.udp
	if network == "tcp" {
		to = w.tcp
	}
	c := miekg.Client{Net: network, Timeout: time.Minute}
	reply, _, err := c.Exchange(m, to)
	if err != nil {
		t.Fatalf("%s %s: %v", network, m.Question[0].Name, err)
	}
	return reply
}

func question(name string, qtype uint16) *miekg.Msg {
	return new(miekg.Msg).SetQuestion(name, qtype)
}

// upstream runs miekg's server over both transports on one port.
func upstream(t testing.TB, handle miekg.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, l := samePort(t)
	for _, s := range []*miekg.Server{{PacketConn: pc, Handler: handle}, {Listener: l, Handler: handle}} {
		started, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := s.ShutdownContext(ctx); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func samePort(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return pc, l
		}
		_ = l.Close()
	}
	t.Fatal("no port is free for both transports")
	return nil, nil
}

// echo answers every question with an address that its first label names, and
// names that begin with "no" with NXDOMAIN.
func echo(w miekg.ResponseWriter, r *miekg.Msg) {
	m := new(miekg.Msg).SetReply(r)
	name := r.Question[0].Name
	if strings.HasPrefix(name, "no") {
		m.Rcode = miekg.RcodeNameError
	} else {
		m.Answer = []miekg.RR{&miekg.A{
			Hdr: miekg.RR_Header{Name: name, Rrtype: miekg.TypeA, Class: miekg.ClassINET, Ttl: 7},
			A:   net.IPv4(192, 0, 2, byte(len(name))),
		}}
	}
	_ = w.WriteMsg(m)
}

// refusing returns the address of a resolver that isn't there.
func refusing(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, l := samePort(t)
	_, _ = pc.Close(), l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// silent returns the address of a resolver that never answers.
func silent(t testing.TB) netip.AddrPort {
	t.Helper()
	pc, l := samePort(t)
	t.Cleanup(func() { _, _ = pc.Close(), l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// to makes the resolvers of a world, with a short timeout.
func to(w *world, servers ...netip.AddrPort) {
	w.forward.fixed.Store(&upstreams{servers: servers, timeout: 200 * time.Millisecond, attempts: 2})
}
