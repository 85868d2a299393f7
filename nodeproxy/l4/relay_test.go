// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// app runs f for each connection to the address that it returns.
func app(t testing.TB, f func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t testing.TB, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

type spiffeID = spiffeid.ID

type starter func(testing.TB, netip.AddrPort, nodeOptions) *mesh

// ways are those that a connection can take; each must carry what TCP says.
var ways = map[string]starter{"tunnel": newMesh, "line": newLineMesh, "direct": direct}

func eachWay(t *testing.T, f func(t *testing.T, start starter)) {
	for name, start := range ways {
		t.Run(name, func(t *testing.T) { f(t, start) })
	}
}

// Several megabytes in both directions at once, then a half-close each.
func TestBulkBothWays(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		const size = 24 << 20
		down := random(size)
		sum := make(chan [32]byte, 1)
		m := start(t, app(t, func(c *net.TCPConn) {
			var writing sync.WaitGroup
			writing.Go(func() {
				c.Write(down)
				c.CloseWrite()
			})
			got, err := io.ReadAll(c)
			if err != nil {
				t.Error("server reads:", err)
			}
			sum <- sha256.Sum256(got)
			writing.Wait()
		}), nodeOptions{})
		up := random(size + 12345)
		c := dial(t, m.front)
		var writing sync.WaitGroup
		writing.Go(func() {
			c.Write(up)
			c.CloseWrite()
		})
		got, err := io.ReadAll(c)
		if err != nil {
			t.Fatal("client reads:", err)
		}
		writing.Wait()
		if !bytes.Equal(got, down) {
			t.Errorf("downwards: %d bytes of %d, or others", len(got), len(down))
		}
		s := m.out.book.last(t)
		if <-sum != sha256.Sum256(up) {
			t.Error("upwards: other bytes")
		}
		if s.sent != len(up) || s.received != len(down) || s.why != reason.None {
			t.Errorf("account: sent %d, received %d, %v", s.sent, s.received, s.why)
		}
		if m.in == nil {
			return
		}
		s = m.in.book.last(t)
		if s.sent != len(up) || s.received != len(down) || s.why != reason.None {
			t.Errorf("account of the server's node: sent %d, received %d, %v", s.sent, s.received, s.why)
		}
	})
}

// The client has finished sending and waits for the answer; then the other way
// round.
func TestHalfClose(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		t.Run("client first", func(t *testing.T) {
			m := start(t, app(t, func(c *net.TCPConn) {
				got, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				c.Write(append([]byte("got "), got...))
			}), nodeOptions{})
			c := dial(t, m.front)
			c.Write([]byte("request"))
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "got request" {
				t.Errorf("%q, %v", got, err)
			}
			if s := m.out.book.last(t); s.why != reason.None {
				t.Error(s.why, s.detail)
			}
		})
		t.Run("server first", func(t *testing.T) {
			answered := make(chan struct{})
			m := start(t, app(t, func(c *net.TCPConn) {
				c.Write([]byte("banner"))
				c.CloseWrite()
				got, err := io.ReadAll(c)
				if err != nil || string(got) != "thanks" {
					t.Errorf("%q, %v", got, err)
				}
				close(answered)
			}), nodeOptions{})
			c := dial(t, m.front)
			got, err := io.ReadAll(c)
			if err != nil || string(got) != "banner" {
				t.Fatalf("%q, %v", got, err)
			}
			c.Write([]byte("thanks"))
			c.CloseWrite()
			<-answered
			if s := m.out.book.last(t); s.why != reason.None {
				t.Error(s.why, s.detail)
			}
		})
	})
}

// A reset on either side arrives as a reset on the other.
func TestReset(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		t.Run("by the client", func(t *testing.T) {
			seen := make(chan error, 1)
			m := start(t, app(t, func(c *net.TCPConn) {
				c.Write([]byte("hello"))
				_, err := io.Copy(io.Discard, c)
				seen <- err
			}), nodeOptions{})
			c := dial(t, m.front)
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			c.SetLinger(0)
			c.Close()
			if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
				t.Error("server sees:", err)
			}
			if s := m.out.book.last(t); s.why != reason.Reset {
				t.Error(s.why, s.detail)
			}
		})
		t.Run("by the server", func(t *testing.T) {
			m := start(t, app(t, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 5))
				c.SetLinger(0)
			}), nodeOptions{})
			c := dial(t, m.front)
			c.Write([]byte("hello"))
			if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
				t.Error("client sees:", err)
			}
			if s := m.out.book.last(t); s.why != reason.Reset {
				t.Error(s.why, s.detail)
			}
		})
	})
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(b)
	return b
}
