// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// Peers that are written out frame by frame.

func dialTCP(t testing.TB, addr string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return nc
}

func remoteOf(nc net.Conn) netip.AddrPort { return nc.RemoteAddr().(*net.TCPAddr).AddrPort() }
func localOf(nc net.Conn) netip.AddrPort  { return nc.LocalAddr().(*net.TCPAddr).AddrPort() }

// serveRaw shakes hands, takes the preface and sends SETTINGS.
func serveRaw(t testing.TB, ca *tunneltest.CA, nc net.Conn) (*tls.Conn, *http2.Framer) {
	tc := tls.Server(nc, ca.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") }))
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(tc, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Errorf("preface %q: %v", preface, err)
	}
	fr := http2.NewFramer(tc, tc)
	fr.WriteSettings()
	return tc, fr
}

// awaitHeaders reads up to the first HEADERS.
func awaitHeaders(t testing.TB, fr *http2.Framer) {
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Error("read frame:", err)
			return
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			return
		case *http2.SettingsFrame:
			if !f.IsAck() {
				fr.WriteSettingsAck()
			}
		}
	}
}

func writeHeaders(fr *http2.Framer, id uint32, end bool, fields ...string) {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
}
