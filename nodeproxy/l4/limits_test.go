// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"io"
	"net"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func TestConnectionLimit(t *testing.T) {
	eachWay(t, func(t *testing.T, start starter) {
		m := start(t, app(t, func(c *net.TCPConn) { io.Copy(c, c) }), nodeOptions{})
		limit := l4.NewLimit(2, 0)
		to := app(t, func(c *net.TCPConn) { io.Copy(c, c) })
		target := l4.Target{Addr: to}
		if m.in != nil {
			target = m.through(t, to)
		}
		front := m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
			return l4.Route{Session: m.out.book.open(target), Limit: limit}, nil
		}))
		var open []*net.TCPConn
		for range 2 {
			c := dial(t, front)
			c.Write([]byte("ping"))
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		expectReset(t, front)
		if s := m.out.book.last(t); s.why != reason.LimitWorkload {
			t.Error(s.why)
		}
		open[0].Close()
		waitFor(t, m.out, func() bool { return limit.Connections() == 1 })
		c := dial(t, front)
		c.Write([]byte("ping"))
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Error(err)
		}
	})
}

// The clients of some connections don't read; the others go on, and what waits
// is bounded by the streams' windows.
func TestSlowReaders(t *testing.T) {
	const slow, size = 6, 16 << 20
	eachWay(t, func(t *testing.T, start starter) {
		m := start(t, app(t, func(c *net.TCPConn) {
			kind := make([]byte, 1)
			io.ReadFull(c, kind)
			if kind[0] == 'e' {
				io.Copy(c, c)
				return
			}
			c.Write(make([]byte, size))
		}), nodeOptions{})
		var stuck []*net.TCPConn
		for range slow {
			c := dial(t, m.front)
			c.Write([]byte("f"))
			stuck = append(stuck, c)
		}
		// The floods have come to a halt when the memory they take stays the same.
		used, same := 0, 0
		waitFor(t, m.out, func() bool {
			now := m.out.loop.Chunks().Used() * loop.ChunkSize
			if now == used {
				same++
			} else {
				used, same = now, 0
			}
			return used > 0 && same > 100
		})
		if used > slow*5<<20 {
			t.Errorf("%d bytes buffered for %d streams", used, slow)
		}
		quick := dial(t, m.front)
		quick.Write([]byte("ehello"))
		if _, err := io.ReadFull(quick, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		for _, c := range stuck {
			if n, err := io.Copy(io.Discard, c); n != size || err != nil {
				t.Error(n, err)
			}
		}
		waitFor(t, m.out, func() bool { return m.out.loop.Chunks().Used() == 0 })
	})
}

func TestMemoryLimit(t *testing.T) {
	for name, start := range map[string]starter{"tunnel": newMesh, "line": newLineMesh} {
		t.Run(name, func(t *testing.T) { testMemoryLimit(t, start) })
	}
}

func testMemoryLimit(t *testing.T, start starter) {
	m := start(t, app(t, func(c *net.TCPConn) { c.Write(make([]byte, 64<<20)) }), nodeOptions{})
	limit := l4.NewLimit(0, 1) // less than any rest of a helping
	target := m.through(t, app(t, func(c *net.TCPConn) { c.Write(make([]byte, 64<<20)) }))
	s := m.out.book.open(target)
	dial(t, m.out.listenFor(routerFunc(func(*l4.Client) (l4.Route, error) {
		return l4.Route{Session: s, Limit: limit}, nil
	})))
	m.out.book.last(t)
	if s.why != reason.LimitMemory {
		t.Error(s.why, s.detail)
	}
	if limit.Buffered() != 0 || limit.Connections() != 0 {
		t.Errorf("%d bytes, %d connections remain", limit.Buffered(), limit.Connections())
	}
}
