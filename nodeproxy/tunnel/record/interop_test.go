// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
)

// crypto/tls is the peer, as a client and as a server; both ends write a lot and
// half-close.
func TestCryptoTLS(t *testing.T) {
	cert := certificate(t)
	for _, client := range []bool{true, false} {
		t.Run(map[bool]string{true: "client", false: "server"}[client], func(t *testing.T) {
			a, b := pair(t)
			want := make([]byte, 3<<20)
			rand.NewChaCha8([32]byte{1}).Read(want)
			peer := make(chan error, 1)
			go func() { peer <- echo(b, cert, !client) }()
			o, err := secure(a, cert, client)
			if err != nil {
				t.Fatal(err)
			}
			o.layer.limit = 20 // crypto/tls follows and answers
			// In pieces that the buffers of sockets hold.
			got := make([]byte, 0, len(want))
			for i := 0; i < len(want); i += 32 << 10 {
				piece := want[i : i+32<<10]
				if _, err := o.Write(piece); err != nil {
					t.Fatal(err)
				}
				back := make([]byte, len(piece))
				if _, err := io.ReadFull(o, back); err != nil {
					t.Fatal(err)
				}
				got = append(got, back...)
			}
			if err := o.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(o)
			if err := errors.Join(err, <-peer); err != nil {
				t.Fatal(err)
			}
			if len(rest) > 0 || !bytes.Equal(got, want) {
				t.Error("other bytes came back")
			}
		})
	}
}

// echo is crypto/tls, which sends back what it gets.
func echo(nc net.Conn, cert tls.Certificate, client bool) error {
	config := &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}
	tc := tls.Server(nc, config) // sends tickets
	if client {
		tc = tls.Client(nc, config)
	}
	if _, err := io.Copy(tc, tc); err != nil {
		return err
	}
	return tc.CloseWrite()
}

// What is sent in the same breath as the end of the handshake is not lost.
func TestNothingStaysBehind(t *testing.T) {
	cert := certificate(t)
	a, b := pair(t)
	peer := make(chan error, 1)
	go func() {
		// The server's Finished, tickets and data come close together, the
		// client's Finished and data in one segment.
		tc := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}})
		_, err := tc.Write([]byte("early"))
		if err == nil {
			err = tc.CloseWrite()
		}
		peer <- err
	}()
	o, err := secure(a, cert, true)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(o)
	if err := errors.Join(err, <-peer); err != nil || string(got) != "early" {
		t.Errorf("%q, %v", got, err)
	}
}

// Whatever records come, a Layer takes and refuses what crypto/tls does.
func TestLikeCryptoTLS(t *testing.T) {
	cert := certificate(t)
	rng := rand.New(rand.NewPCG(13, 37))
	refused := 0
	for range 150 {
		a, b := pair(t)
		theirs := make(chan *tls.Conn, 1)
		memory := &still{Conn: b}
		go func() {
			front := &swap{b}
			tc := tls.Server(front, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
			if err := tc.Handshake(); err != nil {
				t.Error(err)
			}
			front.Conn = memory
			theirs <- tc
		}()
		o, err := secure(a, cert, true)
		if err != nil {
			t.Fatal(err)
		}
		tc := <-theirs
		ours := &Layer{limit: keyRecords, in: o.layer.out, out: o.layer.in}
		ours.in.secret, ours.out.secret = bytes.Clone(ours.in.secret), bytes.Clone(ours.out.secret)
		for step := range 40 {
			name, rec := someRecord(rng, o.layer)
			memory.in = bytes.Clone(rec)
			plain := make([]byte, MaxPayload+1)
			n, wantErr := tc.Read(plain)
			got, err := ours.all(bytes.Clone(rec))
			if !bytes.Equal(got, plain[:n]) {
				t.Fatalf("step %d, %s: %d bytes, crypto/tls %d", step, name, len(got), n)
			}
			if errors.Is(wantErr, os.ErrDeadlineExceeded) {
				wantErr = nil // there is nothing more yet
			}
			if (err == nil) != (wantErr == nil) || (err == io.EOF) != (wantErr == io.EOF) {
				t.Fatalf("step %d, %s: %v, crypto/tls %v", step, name, err, wantErr)
			}
			if err != nil {
				refused++
				break
			}
		}
		a.Close()
		b.Close()
	}
	if refused < 100 {
		t.Error("only", refused, "connections ended with an error")
	}
}

// swap is a net.Conn whose inside changes.
type swap struct{ net.Conn }

// someRecord is one that l sends: mostly good ones.
func someRecord(rng *rand.Rand, l *Layer) (name string, rec []byte) {
	updates := func(body ...byte) []byte {
		rec := l.pieces(typeHandshake, body, rng.IntN(3))
		if body[0] == keyUpdateMessage && len(body) == 5 || body[0] == 0 {
			if err := l.out.update(); err != nil {
				panic(err)
			}
		}
		return rec
	}
	switch n := rng.IntN(60); {
	case n < 20:
		return "data", l.pieces(typeApplication, make([]byte, 1+rng.IntN(MaxPayload-10)), rng.IntN(10))
	case n < 32:
		return "empty", l.pieces(typeApplication, nil, rng.IntN(10))
	case n < 40:
		return "KeyUpdate", updates(keyUpdateMessage, 0, 0, 1, 0)
	case n < 46:
		return "KeyUpdate, asking", updates(keyUpdateMessage, 0, 0, 1, 1)
	case n < 50:
		return "KeyUpdate in two", append(l.pieces(typeHandshake, []byte{keyUpdateMessage}, 0), updates(0, 0, 1, 0)...)
	case n < 53:
		return "user_canceled", l.pieces(typeAlert, []byte{1, byte(userCanceled)}, 0)
	}
	bad := []struct {
		name string
		make func() []byte
	}{
		{"close_notify", func() []byte { return l.pieces(typeAlert, []byte{1, 0}, 0) }},
		{"fatal alert", func() []byte { return l.pieces(typeAlert, []byte{2, 48}, 0) }},
		{"long alert", func() []byte { return l.pieces(typeAlert, []byte{2, 48, 0}, 0) }},
		{"KeyUpdate of a kind", func() []byte { return l.pieces(typeHandshake, []byte{keyUpdateMessage, 0, 0, 1, 2}, 0) }},
		{"two KeyUpdates", func() []byte {
			return l.pieces(typeHandshake, bytes.Repeat([]byte{keyUpdateMessage, 0, 0, 1, 0}, 2), 0)
		}},
		{"data in a KeyUpdate", func() []byte {
			return append(l.pieces(typeHandshake, []byte{keyUpdateMessage, 0, 0}, 0), l.pieces(typeApplication, []byte("x"), 0)...)
		}},
		{"request for a certificate", func() []byte { return l.pieces(typeHandshake, []byte{13, 0, 0, 3, 0, 0, 0}, 0) }},
		{"empty handshake", func() []byte { return l.pieces(typeHandshake, nil, 1) }},
		{"type", func() []byte { return l.pieces(77, []byte("x"), 0) }},
		{"no type", func() []byte { return l.seal(nil, make([]byte, 5)) }},
		{"too long", func() []byte { return l.pieces(typeApplication, make([]byte, MaxPayload+1), 0) }},
		{"forged", func() []byte {
			rec := l.pieces(typeApplication, []byte("payload"), 0)
			rec[headerLen+rng.IntN(len(rec)-headerLen)] ^= 1 << rng.IntN(8)
			return rec
		}},
		{"version", func() []byte {
			rec := l.pieces(typeApplication, []byte("payload"), 0)
			rec[2]--
			return rec
		}},
	}
	b := bad[rng.IntN(len(bad))]
	return b.name, b.make()
}
