// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// Records arrive in pieces of any size, and nothing is known of them before they
// are complete.
func TestRecordInPieces(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	nc := dialTCP(t, s.addr.String())
	r := secureRaw(t, ca, nc)
	r.nc = &slicing{Conn: nc}
	fr := http2.NewFramer(r, r)
	io.WriteString(r, http2.ClientPreface)
	fr.WriteSettings()
	writeHeaders(fr, 1, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
	for i := range 20 {
		msg := strings.Repeat("m", 1+i*300) // all of it fits the window
		fr.WriteData(1, false, []byte(msg))
		for got := ""; got != msg; {
			got += awaitData(t, fr)
			if len(got) > len(msg) {
				t.Fatalf("%d bytes of %d", len(got), len(msg))
			}
		}
	}
}

// slicing writes in pieces, and lets each be read by itself.
type slicing struct {
	net.Conn
	turn int
}

func (s *slicing) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		s.turn++
		k := min(len(p), 1+s.turn*s.turn%1500)
		_, err = s.Conn.Write(p[:k])
		n, p = n+k, p[k:]
		runtime.Gosched()
	}
	return n, err
}

// Who breaks the protocol of records hears so, and the streams are reset.
func TestBadRecord(t *testing.T) {
	for name, c := range map[string]struct {
		send  func(*raw)
		alert byte
	}{
		"forged": {func(r *raw) {
			r.nc.Write(append([]byte{recordApplication, 3, 3, 0, 40}, make([]byte, 40)...))
		}, 20},
		"unknown message": {func(r *raw) { r.seal(recordHandshake, []byte{1, 0, 0, 0}) }, 10},
		"in the clear":    {func(r *raw) { r.nc.Write([]byte{recordAlert, 3, 3, 0, 2, 1, 0}) }, 10},
	} {
		t.Run(name, func(t *testing.T) {
			ca := tunneltest.NewCA(t)
			s := newServer(t, ca, tunnel.Options{}, echo, nil)
			r := secureRaw(t, ca, dialTCP(t, s.addr.String()))
			io.WriteString(r, http2.ClientPreface)
			http2.NewFramer(r, r).WriteSettings()
			c.send(r)
			if _, err := io.Copy(io.Discard, r); err == nil || err.Error() != fmt.Sprintf("alert %d", c.alert) {
				t.Error(err)
			}
		})
	}
}

// The end of the socket in the middle of a record is an error, not a hang-up.
func TestTornRecord(t *testing.T) {
	ca := tunneltest.NewCA(t)
	addr := rawListener(t, func(nc net.Conn) {
		tc, fr := serveRaw(t, ca, nc)
		awaitHeaders(t, fr)
		var answer bytes.Buffer
		hpack.NewEncoder(&answer).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: answer.Bytes(), EndHeaders: true})
		_, _ = tc.NetConn().Write([]byte{recordApplication, 3, 3, 1, 0, 'x'})
		_ = nc.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, nc)
	})
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	w := c.open(keyTo(addr, "a", "server"), patience).must()
	wait(t, w.reset, "reset")
	if err := w.via.Err(); err == nil || !strings.Contains(err.Error(), "middle of a record") || reason.Of(err) != reason.TunnelReset {
		t.Error(err)
	}
}
