// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// Record types and messages of RFC 8446.
const (
	recordAlert       = 21
	recordHandshake   = 22
	recordApplication = 23
	messageKeyUpdate  = 24
)

// The peer updates its keys and asks for the same, again and again, between
// frames and amid a stream. The answers have to leave without anything else to
// send.
func TestKeyUpdate(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	nc := dialTCP(t, s.addr.String())
	r := secureRaw(t, ca, nc)

	fr := http2.NewFramer(r, r)
	io.WriteString(r, http2.ClientPreface)
	fr.WriteSettings()
	writeHeaders(fr, 1, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
	for i := range 5 {
		if err := r.keyUpdate(true); err != nil {
			t.Fatal(err)
		}
		if err := r.awaitUpdate(); err != nil {
			t.Fatal("answer to KeyUpdate:", err)
		}
		msg := fmt.Sprint("message ", i)
		fr.WriteData(1, false, []byte(msg))
		if got := awaitData(t, fr); got != msg {
			t.Fatalf("%q", got)
		}
	}
	// A KeyUpdate in two records.
	if err := r.seal(recordHandshake, []byte{messageKeyUpdate, 0}); err != nil {
		t.Fatal(err)
	}
	if err := r.seal(recordHandshake, []byte{0, 1, 0}); err != nil {
		t.Fatal(err)
	}
	r.out.update()
	fr.WriteData(1, true, []byte("end"))
	if got := awaitData(t, fr); got != "end" {
		t.Fatalf("%q", got)
	}
	// close_notify ends the tunnel; the server answers with its own.
	r.seal(recordAlert, []byte{1, 0})
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, errCloseNotify) {
		t.Error("end:", err)
	}
}

func awaitData(t *testing.T, fr *http2.Framer) string {
	t.Helper()
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			return string(d.Data())
		}
	}
}

// raw is a TLS 1.3 connection (AES-128-GCM) whose records the test makes
// itself, since crypto/tls never begins a KeyUpdate.
type raw struct {
	nc      net.Conn
	in, out keys
	plain   bytes.Buffer
	updates int // KeyUpdates received and not awaited yet
}

var errCloseNotify = errors.New("close_notify")

// keys are one direction's.
type keys struct {
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newKeys(secret []byte) keys {
	block, err := aes.NewCipher(expand(secret, "key", 16))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return keys{secret: secret, aead: aead, iv: expand(secret, "iv", 12)}
}

// update goes to the next generation, RFC 8446 section 7.2.
func (k *keys) update() { *k = newKeys(expand(k.secret, "traffic upd", sha256.Size)) }

func (k *keys) nonce() []byte {
	n := bytes.Clone(k.iv)
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^k.seq)
	k.seq++
	return n
}

// expand is HKDF-Expand-Label with an empty context, section 7.1.
func expand(secret []byte, label string, n int) []byte {
	label = "tls13 " + label
	info := append([]byte{byte(n >> 8), byte(n), byte(len(label))}, label...)
	out, err := hkdf.Expand(func() hash.Hash { return sha256.New() }, secret, string(append(info, 0)), n)
	if err != nil {
		panic(err)
	}
	return out
}

// secureRaw shakes hands with crypto/tls and takes over with its keys.
func secureRaw(t *testing.T, ca *tunneltest.CA, nc net.Conn) *raw {
	t.Helper()
	key := keyTo(remoteOf(nc), "a", "server")
	config, err := ca.ClientConfig(t.Context(), &key)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	config.KeyLogWriter = &log
	// One byte at a time: nothing of what follows may stay in crypto/tls.
	tc := tls.Client(&recordConn{Conn: nc}, config)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if suite := tc.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Fatal("suite", tls.CipherSuiteName(suite))
	}
	r := &raw{nc: nc}
	for line := range strings.Lines(log.String()) {
		f := strings.Fields(line)
		secret, _ := hex.DecodeString(f[2])
		switch f[0] {
		case "CLIENT_TRAFFIC_SECRET_0":
			r.out = newKeys(secret)
		case "SERVER_TRAFFIC_SECRET_0":
			r.in = newKeys(secret)
		}
	}
	return r
}

// recordConn hands out no byte beyond the current record.
type recordConn struct {
	net.Conn
	head [5]byte
	give []byte // of the header
	left int    // of the body
}

func (c *recordConn) Read(p []byte) (int, error) {
	if len(c.give) == 0 && c.left == 0 {
		if _, err := io.ReadFull(c.Conn, c.head[:]); err != nil {
			return 0, err
		}
		c.give, c.left = c.head[:], int(binary.BigEndian.Uint16(c.head[3:]))
	}
	if len(c.give) > 0 {
		n := copy(p, c.give)
		c.give = c.give[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

func (r *raw) seal(kind byte, p []byte) error {
	inner := append(bytes.Clone(p), kind)
	head := []byte{recordApplication, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(inner)+r.out.aead.Overhead()))
	_, err := r.nc.Write(r.out.aead.Seal(head, r.out.nonce(), inner, head[:5:5]))
	return err
}

func (r *raw) Write(p []byte) (int, error) { return len(p), r.seal(recordApplication, p) }

func (r *raw) keyUpdate(request bool) error {
	ask := byte(0)
	if request {
		ask = 1
	}
	err := r.seal(recordHandshake, []byte{messageKeyUpdate, 0, 0, 1, ask})
	r.out.update()
	return err
}

func (r *raw) Read(p []byte) (int, error) {
	for r.plain.Len() == 0 {
		if err := r.open(); err != nil {
			return 0, err
		}
	}
	return r.plain.Read(p)
}

func (r *raw) awaitUpdate() error {
	for r.updates == 0 {
		if err := r.open(); err != nil {
			return err
		}
	}
	r.updates--
	return nil
}

// open takes one record.
func (r *raw) open() error {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r.nc, head); err != nil {
		return err
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(r.nc, body); err != nil {
		return err
	}
	if head[0] != recordApplication {
		return fmt.Errorf("record of type %d", head[0])
	}
	inner, err := r.in.aead.Open(nil, r.in.nonce(), body, head)
	if err != nil {
		return err
	}
	kind, inner := inner[len(inner)-1], inner[:len(inner)-1]
	switch {
	case kind == recordApplication:
		r.plain.Write(inner)
	case kind == recordHandshake && inner[0] == messageKeyUpdate:
		r.in.update()
		r.updates++
	case kind == recordAlert && inner[1] == 0:
		return errCloseNotify
	case kind == recordAlert:
		return fmt.Errorf("alert %d", inner[1])
	default:
		return fmt.Errorf("content of type %d: %x", kind, inner)
	}
	return nil
}

// Bytes of the first records may come together with the handshake's last
// message, and nothing else ever: they must not be forgotten, nor read by
// crypto/tls.
func TestDataRightAfterHandshake(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	for range 20 {
		nc := dialTCP(t, s.addr.String())
		key := keyTo(s.addr, "a", "server")
		config, err := ca.ClientConfig(t.Context(), &key)
		if err != nil {
			t.Fatal(err)
		}
		hold := &holdingConn{Conn: nc}
		tc := tls.Client(hold, config)
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		fr := http2.NewFramer(tc, tc)
		io.WriteString(tc, http2.ClientPreface)
		fr.WriteSettings()
		writeHeaders(fr, 1, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
		fr.WriteData(1, true, []byte("early"))
		// The client's Finished and all of this in one segment.
		if err := hold.release(); err != nil {
			t.Fatal(err)
		}
		if got := awaitData(t, fr); got != "early" {
			t.Fatalf("%q", got)
		}
	}
}

// holdingConn holds back what is written after the first flight.
type holdingConn struct {
	net.Conn
	writes int
	held   []byte
	open   bool
}

func (h *holdingConn) Write(p []byte) (int, error) {
	if h.writes++; h.writes == 1 || h.open {
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

func (h *holdingConn) release() error {
	h.open = true
	_, err := h.Conn.Write(h.held)
	return err
}
