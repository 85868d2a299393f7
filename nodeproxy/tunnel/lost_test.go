// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"net"
	"testing"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// TestLastWords: a write may be what notices that the peer has gone. What the
// peer said before counts all the same: here, that a stream may be opened
// elsewhere.
func TestLastWords(t *testing.T) {
	ca := tunneltest.NewCA(t)
	leave, gone := make(chan struct{}), make(chan struct{})
	addr := rawListener(t, func(nc net.Conn) {
		_, fr := serveRaw(t, ca, nc)
		awaitHeaders(t, fr)
		writeHeaders(fr, 1, false, ":status", "200")
		<-leave
		if err := fr.WriteGoAway(1, http2.ErrCodeNo, nil); err != nil {
			t.Error(err)
		}
		_ = nc.(*net.TCPConn).SetLinger(0) // RST follows
		_ = nc.Close()
		gone <- struct{}{}
	})
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	key := keyTo(addr, "a", "server")
	first := c.open(key, patience).must()
	late, b := newCaller(c), block(t)
	c.do(func() {
		// While the loop is here it hears nothing of it.
		close(leave)
		wait(t, gone, "the server to go")
		c.pool.Open(key, b, patience, late)
	})
	if e := wait(t, late.reset, "the late stream's end"); !e.Unprocessed {
		t.Errorf("the late stream: %v", e)
	}
	if e := wait(t, first.reset, "the first stream's end"); e.Unprocessed {
		t.Errorf("the first stream: %v", e)
	}
	c.until("the tunnel to be forgotten", func() bool { return c.pool.Stats().Connections == 0 })
}
