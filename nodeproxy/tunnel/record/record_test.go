// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

var suiteIDs = []uint16{tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384, tls.TLS_CHACHA20_POLY1305_SHA256}

// secretsOf are secrets for a suite, the same each time.
func secretsOf(id uint16) *Secrets {
	n := suites[id].hashLen
	return &Secrets{client: bytes.Repeat([]byte{0xc1}, n), server: bytes.Repeat([]byte{0x5e}, n)}
}

// layers are the two ends of a connection.
func layers(t testing.TB, id uint16) (client, server *Layer) {
	t.Helper()
	state := &tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, CipherSuite: id}
	client, err := New(state, secretsOf(id), true)
	if err != nil {
		t.Fatal(err)
	}
	if server, err = New(state, secretsOf(id), false); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// pieces seals content of any type and padding.
func (l *Layer) pieces(kind byte, p []byte, padding int) []byte {
	return l.seal(nil, append(append(bytes.Clone(p), kind), make([]byte, padding)...))
}

// said seals payload as Seal's callers do.
func said(t testing.TB, l *Layer, dst []byte, p string) []byte {
	t.Helper()
	out, err := l.Seal(dst, append([]byte(p), 'x'))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// all opens all records of buf and puts their payload together.
func (l *Layer) all(buf []byte) (payload []byte, err error) {
	for len(buf) > 0 {
		p, n, err := l.Open(buf)
		if err != nil || n == 0 {
			return payload, err
		}
		payload = append(payload, p...)
		buf = buf[n:]
	}
	return payload, nil
}

func TestLayer(t *testing.T) {
	for _, id := range suiteIDs {
		t.Run(tls.CipherSuiteName(id), func(t *testing.T) {
			client, server := layers(t, id)
			for _, size := range []int{0, 1, 15, 16, 17, 1000, MaxPayload} {
				want := strings.Repeat("m", size)
				for _, dir := range []struct{ from, to *Layer }{{client, server}, {server, client}} {
					rec := said(t, dir.from, nil, want)
					if len(rec) != size+Overhead {
						t.Errorf("%d bytes make a record of %d", size, len(rec))
					}
					if got, err := dir.to.all(rec); err != nil || string(got) != want {
						t.Errorf("%d bytes: got %d, %v", size, len(got), err)
					}
				}
			}
		})
	}
}

// A record is opened when it is complete, wherever reads cut it.
func TestPartialRecord(t *testing.T) {
	client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
	rec := said(t, client, nil, "whole")
	for i := range rec {
		if p, n, err := server.Open(bytes.Clone(rec[:i])); p != nil || n != 0 || err != nil {
			t.Fatalf("%d of %d bytes: %q, %d, %v", i, len(rec), p, n, err)
		}
	}
	if p, n, err := server.Open(append(rec, "behind"...)); string(p) != "whole" || n != len(rec) || err != nil {
		t.Fatalf("%q, %d, %v", p, n, err)
	}
}

// Records go into what is there already, without a copy of payload.
func TestSealAppends(t *testing.T) {
	client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
	out := said(t, client, []byte("before"), "one")
	out = said(t, client, out, "two")
	if got, ok := bytes.CutPrefix(out, []byte("before")); !ok {
		t.Errorf("%q", out)
	} else if p, err := server.all(got); string(p) != "onetwo" || err != nil {
		t.Errorf("%q, %v", p, err)
	}
}

func TestViolations(t *testing.T) {
	const handshake, application = typeHandshake, typeApplication
	update := []byte{keyUpdateMessage, 0, 0, 1, 0}
	head := func(kind, minor byte, size uint16) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{kind, 3, minor}, size), make([]byte, size)...)
	}
	sealed := func(kind byte, p []byte, padding int) func(*Layer) []byte {
		return func(l *Layer) []byte { return l.pieces(kind, p, padding) }
	}
	for _, c := range []struct {
		name  string
		send  func(*Layer) []byte
		alert tls.AlertError
	}{
		{"version", func(*Layer) []byte { return head(application, 1, 40) }, protocolVersion},
		{"in the clear", func(*Layer) []byte { return head(handshake, 3, 40) }, unexpectedMessage},
		{"alert in the clear", func(*Layer) []byte { return []byte{typeAlert, 3, 3, 0, 2, 2, 48} }, unexpectedMessage},
		{"change_cipher_spec", func(*Layer) []byte { return []byte{20, 3, 3, 0, 1, 1} }, unexpectedMessage},
		{"too long", func(*Layer) []byte { return head(application, 3, maxCiphertext+1) }, recordOverflow},
		{"too long, known by its header", func(*Layer) []byte { return head(application, 3, maxCiphertext+1)[:headerLen] }, recordOverflow},
		{"no room for a tag", func(*Layer) []byte { return head(application, 3, tagLen-1) }, badRecordMAC},
		{"empty", func(*Layer) []byte { return head(application, 3, 0) }, badRecordMAC},
		{"forged", func(*Layer) []byte { return head(application, 3, 40) }, badRecordMAC},
		{"replayed", func(l *Layer) []byte {
			rec := said(t, l, nil, "x")
			return append(bytes.Clone(rec), rec...)
		}, badRecordMAC},
		{"plaintext too long", sealed(application, make([]byte, MaxPayload+1), 0), recordOverflow},
		{"plaintext too long with padding", sealed(application, make([]byte, MaxPayload), 1), recordOverflow},
		{"padding only", func(l *Layer) []byte { return l.seal(nil, make([]byte, 9)) }, unexpectedMessage},
		{"nothing", func(l *Layer) []byte { return l.seal(nil, nil) }, unexpectedMessage},
		{"content type", sealed(99, []byte("x"), 0), unexpectedMessage},
		{"change_cipher_spec, protected", sealed(20, []byte{1}, 0), unexpectedMessage},
		{"empty handshake", sealed(handshake, nil, 0), unexpectedMessage},
		{"client_hello", sealed(handshake, []byte{1, 0, 0, 1, 0}, 0), unexpectedMessage},
		{"certificate_request", sealed(handshake, []byte{13, 0, 0, 1, 0}, 0), unexpectedMessage},
		{"ticket of a client", sealed(handshake, []byte{newSessionTicket, 0, 0, 1, 0}, 0), unexpectedMessage},
		{"KeyUpdate of another kind", sealed(handshake, []byte{keyUpdateMessage, 0, 0, 1, 2}, 0), illegalParameter},
		{"KeyUpdate too long", sealed(handshake, []byte{keyUpdateMessage, 0, 0, 2, 0, 0}, 0), decodeError},
		{"KeyUpdate too short", sealed(handshake, []byte{keyUpdateMessage, 0, 0, 0}, 0), decodeError},
		{"two KeyUpdates in a record", sealed(handshake, append(update, update...), 0), unexpectedMessage},
		{"old keys after KeyUpdate", func(l *Layer) []byte {
			return append(l.pieces(handshake, update, 0), l.pieces(application, []byte("x"), 0)...)
		}, badRecordMAC},
		{"message interrupted", func(l *Layer) []byte {
			return append(l.pieces(handshake, update[:3], 0), l.pieces(application, []byte("x"), 0)...)
		}, unexpectedMessage},
		{"alert too short", sealed(typeAlert, []byte{2}, 0), decodeError},
		{"two alerts in a record", sealed(typeAlert, []byte{1, 0, 1, 0}, 0), decodeError},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
			_, err := server.all(c.send(client))
			bad := (*Error)(nil)
			if !errors.As(err, &bad) || bad.Alert != c.alert {
				t.Fatalf("got %v, not %v", err, c.alert)
			}
			if _, _, again := server.Open(said(t, client, nil, "x")); again != err {
				t.Errorf("afterwards %v", again)
			}
			var remote tls.AlertError
			if _, err := client.all(server.Close(nil)); !errors.As(err, &remote) || remote != c.alert {
				t.Errorf("the peer hears %v", err)
			}
		})
	}
}

// What brings no payload is taken a few times in a row, not for ever.
func TestIdleRecords(t *testing.T) {
	ticket := append([]byte{newSessionTicket, 0, 0, 9}, "no matter"...)
	for name, send := range map[string]func(*Layer) []byte{
		"empty":         func(l *Layer) []byte { return l.pieces(typeApplication, nil, 3) },
		"tickets":       func(l *Layer) []byte { return l.pieces(typeHandshake, ticket, 0) },
		"user_canceled": func(l *Layer) []byte { return l.pieces(typeAlert, []byte{1, byte(userCanceled)}, 0) },
		"KeyUpdates": func(l *Layer) []byte {
			rec := l.pieces(typeHandshake, []byte{keyUpdateMessage, 0, 0, 1, 1}, 0)
			if err := l.out.update(); err != nil {
				t.Fatal(err)
			}
			return rec
		},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
			for range 3 {
				for range maxIdle {
					if p, err := client.all(send(server)); err != nil || len(p) > 0 {
						t.Fatalf("%q, %v", p, err)
					}
				}
				if p, err := client.all(said(t, server, nil, "payload")); err != nil || string(p) != "payload" {
					t.Fatalf("%q, %v", p, err)
				}
			}
			var err error
			for n := 0; err == nil; n++ {
				if n > maxIdle {
					t.Fatal("no end")
				}
				_, err = client.all(send(server))
			}
			if bad := (*Error)(nil); !errors.As(err, &bad) || bad.Alert != unexpectedMessage {
				t.Error(err)
			}
		})
	}
}

// Padding is taken off, and messages may be cut anywhere or share a record.
func TestContent(t *testing.T) {
	client, server := layers(t, tls.TLS_AES_256_GCM_SHA384)
	var sent []byte
	sent = append(sent, server.pieces(typeApplication, []byte("one"), 200)...)
	ticket := append([]byte{newSessionTicket, 0, 0, 9}, "no matter"...)
	sent = append(sent, server.pieces(typeHandshake, append(bytes.Clone(ticket), ticket...), 0)...)
	for _, b := range ticket {
		sent = append(sent, server.pieces(typeHandshake, []byte{b}, 1)...)
	}
	sent = append(sent, server.pieces(typeHandshake, append(bytes.Clone(ticket), keyUpdateMessage, 0), 0)...)
	sent = append(sent, server.pieces(typeHandshake, []byte{0, 1, 0}, 0)...)
	if err := server.out.update(); err != nil {
		t.Fatal(err)
	}
	sent = append(sent, server.pieces(typeApplication, []byte("two\x00\x00"), MaxPayload-5)...)
	if got, err := client.all(sent); err != nil || string(got) != "onetwo\x00\x00" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAlerts(t *testing.T) {
	client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
	if _, err := server.all(client.Close(nil)); err != io.EOF {
		t.Error("close_notify:", err)
	}
	if more := client.Close(nil); len(more) != 0 {
		t.Error("closed twice")
	}
	if p, err := client.all(said(t, server, nil, "half-closed")); err != nil || string(p) != "half-closed" {
		t.Errorf("%q, %v", p, err)
	}
	const unknownCA = tls.AlertError(48)
	_, err := client.all(server.pieces(typeAlert, []byte{1, byte(unknownCA)}, 0)) // whatever the level
	var remote tls.AlertError
	if !errors.As(err, &remote) || remote != unknownCA {
		t.Error(err)
	}
	if bad := (*Error)(nil); errors.As(err, &bad) {
		t.Error("blames the peer for", bad)
	}
}

// Whoever asks for keys again and again gets one answer for all.
func TestKeyUpdateAnswer(t *testing.T) {
	client, server := layers(t, tls.TLS_AES_128_GCM_SHA256)
	for range 5 {
		rec := client.pieces(typeHandshake, []byte{keyUpdateMessage, 0, 0, 1, 1}, 0)
		if err := client.out.update(); err != nil {
			t.Fatal(err)
		}
		if _, err := server.all(rec); err != nil || !server.Owes() {
			t.Fatal(server.Owes(), err)
		}
	}
	before := bytes.Clone(server.out.secret)
	answer, err := server.Answer(nil)
	if err != nil || server.Owes() || bytes.Equal(before, server.out.secret) {
		t.Fatal("no answer", err)
	}
	if want := headerLen + 5 + 1 + tagLen; len(answer) != want {
		t.Errorf("%d bytes, not %d", len(answer), want)
	}
	if more, err := server.Answer(nil); len(more) != 0 || err != nil {
		t.Error("answers twice")
	}
	if _, err := client.all(answer); err != nil || client.Owes() {
		t.Error(client.Owes(), err)
	}
	if got, err := client.all(said(t, server, nil, "new keys")); err != nil || string(got) != "new keys" {
		t.Errorf("%q, %v", got, err)
	}
}

// Keys that have protected enough make room for new ones, those of a peer too
// that doesn't count.
func TestKeyLimit(t *testing.T) {
	client, server := layers(t, tls.TLS_CHACHA20_POLY1305_SHA256)
	client.limit = 10
	first := [2][]byte{bytes.Clone(client.out.secret), bytes.Clone(server.out.secret)}
	for i := range 100 {
		for _, dir := range []struct{ from, to *Layer }{{client, server}, {server, client}} {
			if got, err := dir.to.all(said(t, dir.from, nil, "payload")); err != nil || string(got) != "payload" {
				t.Fatalf("%d: %q, %v", i, got, err)
			}
			if client.out.seq > client.limit || server.out.seq > client.limit+1 {
				t.Fatal("keys used for too long:", client.out.seq, server.out.seq)
			}
		}
	}
	if bytes.Equal(first[0], client.out.secret) || bytes.Equal(first[1], server.out.secret) {
		t.Error("keys never changed")
	}
}

func TestNewRefuses(t *testing.T) {
	good := tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
	for name, change := range map[string]func(*tls.ConnectionState, *Secrets){
		"version":   func(st *tls.ConnectionState, _ *Secrets) { st.Version = tls.VersionTLS12 },
		"suite":     func(st *tls.ConnectionState, _ *Secrets) { st.CipherSuite = 0x1304 },
		"handshake": func(st *tls.ConnectionState, _ *Secrets) { st.HandshakeComplete = false },
		"no client": func(_ *tls.ConnectionState, s *Secrets) { s.client = nil },
		"no server": func(_ *tls.ConnectionState, s *Secrets) { s.server = nil },
		"length":    func(_ *tls.ConnectionState, s *Secrets) { s.server = s.server[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			st, s := good, secretsOf(good.CipherSuite)
			change(&st, s)
			if l, err := New(&st, s, true); l != nil || err == nil {
				t.Error(l, err)
			}
			if s.client != nil || s.server != nil {
				t.Error("secrets are kept")
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	for _, id := range suiteIDs {
		client, server := layers(t, id)
		payload, out := make([]byte, MaxPayload+1), make([]byte, 0, MaxPayload+Overhead)
		n := testing.AllocsPerRun(100, func() {
			rec, err := client.Seal(out, payload)
			if err != nil {
				t.Fatal(err)
			}
			if p, _, err := server.Open(rec); err != nil || len(p) != MaxPayload {
				t.Fatal(len(p), err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations", tls.CipherSuiteName(id), n)
		}
	}
}
