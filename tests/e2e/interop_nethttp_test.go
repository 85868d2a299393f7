// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/nethttp"
)

// TestNetHTTPToNode: tunnels that net/http's client opens.
func TestNetHTTPToNode(t *testing.T) {
	l := foreignLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	app := l.listener(a, "web", "10.77.0.1:7001")
	client := nethttp.NewClient(b.DialContext, "10.77.0.1:15008", l.credentials("peer").Client("", meshnode.Identity("web")))
	defer client.Close()
	way := newForwarder(t, func(c *net.TCPConn) { _ = client.Carry(context.Background(), c, "10.77.0.1:7001") })
	k := &lane{app: app, endsWithApp: true, dial: way.dial}
	k.check(t)

	for authority, want := range map[string]int{"10.77.0.1:7004": 401, "10.77.0.1:7003": 503, "10.77.0.1:7999": 400} {
		t.Run(authority, func(t *testing.T) {
			result := make(chan error, 1)
			way := newForwarder(t, func(c *net.TCPConn) { result <- client.Carry(l.in(t).ctx(), c, authority) })
			if _, err := way.dial(); err != nil {
				t.Fatal(err)
			}
			var status *nethttp.StatusError
			if err := <-result; !errors.As(err, &status) || status.Status != want {
				t.Errorf("got %v, want %d", err, want)
			}
		})
	}
}

// TestNodeToNetHTTP: tunnels to net/http's server.
func TestNodeToNetHTTP(t *testing.T) {
	l := foreignLab(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	ln, err := b.Listen("tcp", on(15008).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	server := &nethttp.Server{Dial: b.DialContext, MaxStreams: 50}
	go server.Serve(ln, l.credentials("peer").Server(meshnode.Identity("front")))
	app := l.listener(b, "app", on(7001).String())
	front := l.opener(a, "front")
	k := &lane{app: app, endsWithApp: true, dial: dialer(front, on(7001).String())}
	k.check(t)
	if n := server.Connections(); n < 5 || n > 6 {
		t.Errorf("%d tunnels for 250 streams of 50 each, want 5, or 6 where one is opened ahead of need", n)
	}
	t.Run("503", func(t *testing.T) {
		c, err := front.Dial(on(7003).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		l.in(t).refused("a", "outbound peer_unavailable")
	})
}

// forwarder takes the test's connections on loopback.
type forwarder struct{ ln net.Listener }

// newForwarder carries each connection on a goroutine of its own until the test
// ends.
func newForwarder(t *testing.T, carry func(*net.TCPConn)) *forwarder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return &forwarder{ln}
}

func (f *forwarder) dial() (net.Conn, error) {
	return net.Dial("tcp", f.ln.Addr().String())
}
