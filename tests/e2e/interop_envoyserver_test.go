// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
	"github.com/meshproxy/meshproxy/tests/peers/envoy"
	"github.com/meshproxy/meshproxy/tests/peers/handover"
)

// envoyServer is an Envoy on b that takes tunnels for the service back.
func (l *lab) envoyServer(client string) *envoy.Proxy {
	l.Helper()
	return l.envoy(l.net.Host("b"), func(f credentials.Files) (string, error) {
		return envoy.Server{
			Listen: on(15008), Files: f, Client: meshnode.Identity(client), MaxStreams: 100,
			Routes: []envoy.Route{
				{Authority: on(7001).String(), App: on(7001)},
				{Authority: on(7002).String(), Status: http.StatusUnauthorized},
				{Authority: on(7003).String(), App: on(7003)}, // where nobody listens
			},
		}.Config()
	})
}

// dialer connects from a workload's cgroup.
func dialer(o *handover.Opener, address string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return o.Dial(address) }
}

// TestNodeToEnvoy: tunnels to Envoy, from captured connections.
func TestNodeToEnvoy(t *testing.T) {
	l := foreignLab(t)
	p := l.envoyServer("front")
	app := l.listener(l.net.Host("b"), "app", on(7001).String())
	front := l.opener(l.net.Host("a"), "front")
	// With allow_multiplexed_upstream_half_close Envoy would let the client go
	// on after the application's end, but then gives the application's
	// connection to the next stream when a stream is over.
	k := &lane{app: app, dial: dialer(front, on(7001).String()), softToApp: true, endsWithApp: true}
	k.check(t)

	t.Run("connections grow with streams", func(t *testing.T) {
		n := counters(l.in(t), p)
		// 250 streams and Envoy's limit of 100.
		if opened := n["http.hbone.downstream_cx_total"]; opened < 3 || opened > 4 {
			t.Errorf("%d connections, want 3, or 4 where one is opened ahead of need", opened)
		}
		for name, n := range n {
			if n > 0 && (strings.HasSuffix(name, "protocol_error") || strings.HasPrefix(name, "http2.") && strings.Contains(name, "flood") ||
				strings.HasPrefix(name, "http2.rx_messaging_error") || strings.HasSuffix(name, "downstream_rq_too_many_premature_resets")) {
				t.Errorf("Envoy complains: %s %d", name, n)
			}
		}
	})
	for _, tc := range []struct {
		name, address string
		counter       string
	}{
		{"401", on(7002).String(), "outbound peer_denied"},
		{"503", on(7003).String(), "outbound peer_unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := front.Dial(tc.address)
			if err == nil {
				defer c.Close()
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %v, want a reset", err)
			}
			l.in(t).refused("a", tc.counter)
		})
	}
	t.Run("GOAWAY", func(t *testing.T) { l.in(t).envoyDrains(p, k) })
}

// envoyDrains: Envoy announces that its connections end. What is open goes on,
// what is new takes new connections.
func (l *lab) envoyDrains(p *envoy.Proxy, k *lane) {
	c, s := k.open(l.T)
	pass(l.T, c, s, "before")
	if err := p.Drain(l.ctx()); err != nil {
		l.Fatal(err)
	}
	// Envoy sends GOAWAY with the next answer of a connection, so each of these
	// connections is the last on its tunnel.
	const opened = "http.hbone.downstream_cx_total"
	before := counters(l, p)[opened]
	for i := range 5 {
		c, s := k.open(l.T)
		pass(l.T, c, s, fmt.Sprintf("while draining %d", i))
		halfClose(l.T, c, s)
	}
	l.eventually("new tunnels", func() error {
		if now := counters(l, p)[opened]; now < before+2 {
			return fmt.Errorf("%d tunnels were opened", now-before)
		}
		return nil
	})
	if n := counters(l, p)["http.hbone.downstream_cx_drain_close"]; n == 0 {
		l.Error("Envoy has drained no tunnel")
	}
	pass(l.T, s, c, "after")
	halfClose(l.T, c, s)
}

// TestEnvoyRefusesNode: a server that expects another client ends the tunnel
// with an alert, and the application hears of it at once.
func TestEnvoyRefusesNode(t *testing.T) {
	l := foreignLab(t)
	l.envoyServer("somebody-else")
	c, err := l.opener(l.net.Host("a"), "front").Dial(on(7001).String())
	if err == nil {
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	l.refused("a", "outbound peer_untrusted")
}
