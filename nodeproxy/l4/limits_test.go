// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/l4"
	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
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

// A stream that stalls costs its workload what waits. Where that is more than
// the workload may have, the stream ends; the client doesn't read here.
func TestMemoryLimit(t *testing.T) {
	for name, c := range map[string]struct {
		start starter
		limit int64
	}{
		"tunnel": {newMesh, 32 << 10},
		"line":   {newLineMesh, 1}, // what waits may be a single byte, in a chunk
	} {
		t.Run(name, func(t *testing.T) {
			m := c.start(t, app(t, func(c *net.TCPConn) { c.Write(make([]byte, 64<<20)) }), nodeOptions{})
			limit := l4.NewLimit(0, c.limit)
			s := m.out.book.open(m.through(t, app(t, func(c *net.TCPConn) { c.Write(make([]byte, 64<<20)) })))
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
		})
	}
}

// A line keeps a helping at most, in either direction. A workload that may have
// that much never loses a stream, however its reader stalls; one that may have
// nothing loses every stream that stalls.
func TestMemoryLimitOfLine(t *testing.T) {
	for _, toApp := range []bool{true, false} {
		for _, enough := range []bool{true, false} {
			t.Run(fmt.Sprintf("toApp=%t enough=%t", toApp, enough), func(t *testing.T) {
				testLineStall(t, toApp, enough)
			})
		}
	}
}

func testLineStall(t *testing.T, toApp, enough bool) {
	const size = 24 << 20
	most := int64(tunnel.LineWrite)
	if !toApp {
		most += 8 << 10 // headers and tags of records, the first of which are small
	}
	limit := l4.NewLimit(0, most)
	if !enough {
		limit.Set(0, 1)
	}
	f := foreignServer(t, tls.VersionTLS13, nodeOptions{limit: limit})
	from, to := half(f.peer), f.app
	if !toApp {
		from, to = to, from
	}
	say(t, from, to, "now")
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_, err := from.Write(make([]byte, size))
		if enough {
			err = errors.Join(err, from.CloseWrite())
		}
		if (err == nil) != enough {
			t.Errorf("write: %v", err)
		}
	})
	s := f.node.book.all()[0]
	if !enough {
		f.node.book.last(t)
		if s.why != reason.LimitMemory || limit.Buffered() != 0 {
			t.Errorf("%s %s, %d bytes remain", s.why, s.detail, limit.Buffered())
		}
		return
	}
	moved, same := 0, 0
	waitFor(t, f.node, func() bool {
		if now := s.moved(); now == moved {
			same++
		} else {
			moved, same = now, 0
		}
		return limit.Buffered() > 0 && same > 100
	})
	if b := limit.Buffered(); b > most {
		t.Errorf("%d bytes wait, %d may", b, most)
	}
	if n, err := io.Copy(io.Discard, to); n != size || err != nil {
		t.Error(n, err)
	}
	waitFor(t, f.node, func() bool { return limit.Buffered() == 0 })
}
