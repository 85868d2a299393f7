// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// nobody is an address where nothing listens.
var nobody = netip.MustParseAddrPort("127.0.0.1:1")

func greeter(t testing.TB) netip.AddrPort {
	return app(t, func(c *net.TCPConn) { c.Write([]byte("hello")) })
}

// expectReset dials and is reset, possibly before connect(2) has returned.
func expectReset(t *testing.T, to netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		// The socket reports the reset once, to whichever call comes first.
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = io.Copy(io.Discard, c)
		}
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("%v; want a reset", err)
	}
}

func expectHello(t *testing.T, to netip.AddrPort) {
	t.Helper()
	c := dial(t, to)
	got, err := io.ReadAll(c)
	c.Close()
	if err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// The first targets refuse, the last one answers, whatever leads there.
func TestTargetsInOrder(t *testing.T) {
	m := newMesh(t, nobody, nodeOptions{})
	there := greeter(t)
	failing := map[string]l4.Target{
		"socket refused":           {Addr: nobody},
		"no such tunnel":           through(t, nobody, there),
		"application refused":      through(t, m.in.addr, nobody),
		"authority makes no sense": through(t, m.in.addr, netip.AddrPortFrom(netip.IPv6Unspecified(), 0)),
	}
	wrong := through(t, m.in.addr, there)
	key := *wrong.Tunnel
	key.Source = tunneltest.ID("other") // a connection of its own
	key.Destinations = identities("somebody-else")
	wrong.Tunnel = &key
	failing["identity mismatch"] = wrong

	want := map[string]reason.Reason{
		"socket refused":           reason.ConnectRefused,
		"no such tunnel":           reason.ConnectRefused,
		"application refused":      reason.PeerUnavailable,
		"authority makes no sense": reason.PeerUnavailable,
		"identity mismatch":        reason.IdentityMismatch,
	}
	for name, bad := range failing {
		for last, good := range map[string]l4.Target{"socket": {Addr: there}, "tunnel": through(t, m.in.addr, there)} {
			t.Run(name+", then "+last, func(t *testing.T) {
				s := m.out.book.open(bad, good)
				front := m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) { return l4.Route{Session: s}, nil }))
				expectHello(t, front)
				m.out.book.last(t)
				if len(s.failures) != 1 || reason.Of(s.failures[0]) != want[name] {
					t.Errorf("failures %v, want %v", s.failures, want[name])
				}
				if (s.peer != nil) != (last == "tunnel") || s.peer != nil && s.peer.Identity != tunneltest.ID("server") {
					t.Errorf("peer %+v", s.peer)
				}
			})
		}
		t.Run(name+", and nothing else", func(t *testing.T) {
			s := m.out.book.open(bad)
			front := m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) { return l4.Route{Session: s}, nil }))
			expectReset(t, front)
			m.out.book.last(t)
			if s.why != want[name] {
				t.Errorf("closed with %v, %s", s.why, s.detail)
			}
		})
	}
}

func TestRefusedByRouter(t *testing.T) {
	refused := make(chan error, 1)
	n := newNode(t, nodeOptions{ca: tunneltest.NewCA(t), relays: l4.Options{
		Refused: func(c *l4.Client, _ *l4.Request, err error) { refused <- err },
	}})
	expectReset(t, n.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{}, reason.Wrap(reason.NoFlow, errors.New("never seen"))
	})))
	if err := <-refused; reason.Of(err) != reason.NoFlow {
		t.Error(err)
	}
}

func TestRouteLater(t *testing.T) {
	to := greeter(t)
	n := newNode(t, nodeOptions{ca: tunneltest.NewCA(t)})
	answers := make(chan func(l4.Route, error), 1)
	front := n.listenFor(routerFunc(func(c *l4.Client) (l4.Route, error) {
		answers <- c.Later()
		return l4.Route{}, l4.ErrLater
	}))
	t.Run("route", func(t *testing.T) {
		go func() { (<-answers)(l4.Route{Session: n.book.open(l4.Target{Addr: to})}, nil) }()
		expectHello(t, front)
		n.book.last(t)
	})
	t.Run("refusal", func(t *testing.T) {
		go func() { (<-answers)(l4.Route{}, errors.New("no")) }()
		expectReset(t, front)
	})
	t.Run("client gone", func(t *testing.T) {
		c := dial(t, front)
		answer := <-answers
		c.SetLinger(0)
		c.Close()
		waitFor(t, n, func() bool { return n.relays.Open() == 0 })
		answer(l4.Route{Session: n.book.open(l4.Target{Addr: to})}, nil)
		if s := n.book.last(t); s.why != reason.Reset {
			t.Error(s.why)
		}
	})
}

// waitFor polls a condition on the node's loop.
func waitFor(t *testing.T, n *node, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		ok := false
		n.do(func() { ok = cond() })
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
		tick := make(chan struct{})
		n.do(func() { n.loop.After(time.Millisecond, func() { close(tick) }) })
		<-tick
	}
}

func TestConnectTimeout(t *testing.T) {
	// A listener whose backlog is full answers nobody.
	fd, err := loop.Socket(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	deaf := loop.LocalAddr(fd)
	for range 4 {
		c, err := loop.Socket(deaf.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
		loop.Connect(c, deaf)
	}
	there := greeter(t)
	m := newMesh(t, there, nodeOptions{})
	for name, silent := range map[string]l4.Target{
		"socket": {Addr: deaf},
		"tunnel": through(t, deaf, there),
		"behind": through(t, m.in.addr, deaf),
	} {
		silent.Timeout = 300 * time.Millisecond
		t.Run(name, func(t *testing.T) {
			s := m.out.book.open(silent, l4.Target{Addr: there})
			expectHello(t, m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) { return l4.Route{Session: s}, nil })))
			m.out.book.last(t)
			if len(s.failures) != 1 || reason.Of(s.failures[0]) != reason.ConnectTimeout {
				t.Error(s.failures)
			}
		})
	}
}

func TestIdleTimeout(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		m := start(t, app(t, func(c *net.TCPConn) { io.Copy(c, c) }), nodeOptions{relays: l4.Options{IdleTimeout: 300 * time.Millisecond}})
		c := dial(t, m.front)
		// On a busy machine the time is over before the answer, and the socket reports
		// the reset once, to whichever call comes first.
		_, err := c.Write([]byte("ping"))
		if err == nil {
			_, err = io.Copy(io.Discard, c)
		}
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Error(err)
		}
		if s := m.out.book.last(t); s.why != reason.IdleTimeout && s.why != reason.Reset {
			t.Error(s.why, s.detail)
		}
	})
}

func TestCloseIf(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		m := start(t, app(t, func(c *net.TCPConn) { io.Copy(c, c) }), nodeOptions{})
		var conns []*net.TCPConn
		for range 4 {
			c := dial(t, m.front)
			c.Write([]byte("ping"))
			io.ReadFull(c, make([]byte, 4))
			conns = append(conns, c)
		}
		illegal := m.out.book.all()[:2]
		m.out.do(func() {
			count := 0
			m.out.relays.Each(func(l4.Session) { count++ })
			if count != 4 {
				t.Errorf("%d connections", count)
			}
			closed := m.out.relays.CloseIf(func(s l4.Session) error {
				if s == illegal[0] || s == illegal[1] {
					return reason.Wrap(reason.PolicyChanged, errors.New("new policy"))
				}
				return nil
			})
			if closed != 2 || m.out.relays.Open() != 2 {
				t.Errorf("%d closed, %d open", closed, m.out.relays.Open())
			}
		})
		for i, c := range conns {
			c.Write([]byte("pong"))
			_, err := io.ReadFull(c, make([]byte, 4))
			if legal := i >= 2; legal != (err == nil) {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		if s := illegal[0]; s.why != reason.PolicyChanged {
			t.Error(s.why)
		}
	})
}

// A target's own socket function is asked, with its address.
func TestSocketFunc(t *testing.T) {
	to := app(t, func(c *net.TCPConn) { c.Write([]byte(c.RemoteAddr().String())) })
	m := direct(t, to, nodeOptions{})
	target := l4.Target{Addr: to, Socket: func(a netip.AddrPort) (int, error) {
		if a != to {
			t.Errorf("asked for %v", a)
		}
		fd, err := loop.Socket(a.Addr())
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 77}})
		}
		return fd, err
	}}
	front := m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: m.out.book.open(target)}, nil
	}))
	got, err := io.ReadAll(dial(t, front))
	if err != nil || !strings.HasPrefix(string(got), "127.0.0.77:") {
		t.Errorf("%q, %v", got, err)
	}
}

// A session that panics loses its own connection and no other.
func TestPanicIsContained(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		to := app(t, func(c *net.TCPConn) { io.Copy(c, c) })
		m := start(t, to, nodeOptions{})
		target := l4.Target{Addr: to}
		if m.in != nil {
			target = m.through(t, to)
		}
		healthy := dial(t, m.front)
		echo := func() error {
			healthy.Write([]byte("ping"))
			_, err := io.ReadFull(healthy, make([]byte, 4))
			return err
		}
		if err := echo(); err != nil {
			t.Fatal(err)
		}
		s := &bomb{session: m.out.book.open(target)}
		c := dial(t, m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) { return l4.Route{Session: s}, nil })))
		c.Write([]byte("boom"))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("no error")
		}
		<-s.over
		if s.why != reason.Internal {
			t.Error(s.why)
		}
		if err := echo(); err != nil {
			t.Error("the other connection:", err)
		}
	})
}

type bomb struct{ *session }

func (b *bomb) Sent(int) { panic("boom") }

// Many short connections, some of them reset half-way: nothing is left over.
func TestChurn(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		m := start(t, app(t, func(c *net.TCPConn) { io.Copy(c, c) }), nodeOptions{})
		errs := make(chan error, 8)
		for w := range 8 {
			go func() {
				var err error
				for i := range 60 {
					if err = errors.Join(err, once(m.front, (w+i)%4)); err != nil {
						break
					}
				}
				errs <- err
			}()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		waitFor(t, m.out, func() bool { return m.out.relays.Open() == 0 })
		if m.in != nil {
			waitFor(t, m.in, func() bool { return m.in.relays.Open() == 0 })
		}
		for _, s := range m.out.book.all() {
			<-s.over
		}
	})
}

// once makes one connection that ends in one of several ways.
func once(to netip.AddrPort, how int) error {
	nc, err := net.Dial("tcp", to.String())
	if err != nil {
		return err
	}
	defer nc.Close()
	c := nc.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(patience))
	switch how {
	case 0:
		c.SetLinger(0)
		return nil
	case 1:
		c.Write(make([]byte, 100<<10))
		c.SetLinger(0)
		return nil
	}
	want := bytes.Repeat([]byte("0123456789"), 1+how*1000)
	go func() {
		c.Write(want)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, want) {
		err = errors.New("other bytes")
	}
	return err
}
