// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"sync"
	"time"
)

// sessionLife is how long a session can be resumed after the handshake in which
// both sides showed their leaves, however often it was resumed meanwhile. Ticket
// keys change as often.
const sessionLife = time.Hour

// ticketMark begins the tickets of this package. It promises the client that
// whoever resumes is authorized again, as in a full handshake: not every server
// does that (see Sessions).
var ticketMark = []byte("meshproxy authorizes anew\x00")

// Tickets lets clients of a server resume TLS sessions. Sidecars open a
// connection per stream; two leaves and four signatures in each are most of what
// a new connection costs, and Envoys resume by default.
//
// A resumed session proves what the full handshake did, so it is worth no more
// than that: a ticket is for one leaf of this side and for one trust bundle, and
// ends with the client's chain, an hour after the full handshake, or with the
// process. Where any of that has changed the client shakes hands in full, and
// hears of no error. VerifyConnection runs in resumed handshakes as well, on the
// client's chain of then; authorization follows for each connection anyway.
type Tickets struct {
	provider Provider
	opts     Options

	mu     sync.Mutex
	keeper *tls.Config // has the keys
	keys   [][32]byte  // the newest first
	made   time.Time   // when that was
}

// NewTickets makes what servers of one process share. Options are those of
// ServerConfig.
func NewTickets(p Provider, opts Options) *Tickets {
	return &Tickets{provider: p, opts: opts.withDefaults(), keeper: new(tls.Config)}
}

// For is meant for tls.Config.GetConfigForClient: it returns config, which comes
// from ServerConfig, with tickets for this client.
func (t *Tickets) For(hello *tls.ClientHelloInfo, config *tls.Config) (*tls.Config, error) {
	leaf, err := config.GetCertificate(hello)
	if err != nil || leaf == nil {
		return config, nil // crypto/tls will come to the same, and knows the alert
	}
	c := config.Clone()
	// A resumed handshake shows no certificate, but it is this one's; who looks
	// for it finds it here.
	c.Certificates = []tls.Certificate{*leaf}
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return leaf, nil }
	c.SessionTicketsDisabled = false
	h := &ticketing{tickets: t, leaf: leaf}
	c.WrapSession, c.UnwrapSession = h.wrap, h.unwrap
	return c, nil
}

// ticketing is that of one handshake.
type ticketing struct {
	tickets *Tickets
	leaf    *tls.Certificate
	began   time.Time // the session, if it was resumed
}

// terms are what a ticket holds beside what crypto/tls needs.
type terms struct {
	scope        [sha256.Size]byte
	began, until int64 // in Unix seconds
}

const termsSize = sha256.Size + 8 + 8

func (t terms) bytes() []byte {
	b := append(make([]byte, 0, termsSize), t.scope[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.began))
	return binary.BigEndian.AppendUint64(b, uint64(t.until))
}

func parseTerms(b []byte) (t terms, ok bool) {
	if len(b) != termsSize {
		return t, false
	}
	rest := b[copy(t.scope[:], b):]
	t.began, t.until = int64(binary.BigEndian.Uint64(rest)), int64(binary.BigEndian.Uint64(rest[8:]))
	return t, true
}

// wrap implements tls.Config.WrapSession.
func (h *ticketing) wrap(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
	began := h.began
	if began.IsZero() {
		began = h.tickets.opts.Now()
	}
	until := began.Add(sessionLife)
	if e := PeerExpires(cs); e.Before(until) {
		until = e
	}
	s.Extra = append(s.Extra, terms{h.scope(), began.Unix(), until.Unix()}.bytes())
	keeper, err := h.tickets.locked()
	if err != nil {
		return nil, err
	}
	sealed, err := keeper.EncryptTicket(cs, s)
	if err != nil {
		return nil, fmt.Errorf("seal session: %w", err)
	}
	return append(bytes.Clone(ticketMark), sealed...), nil
}

// unwrap implements tls.Config.UnwrapSession. Nil means a full handshake.
func (h *ticketing) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	sealed, ok := bytes.CutPrefix(ticket, ticketMark)
	if !ok {
		return nil, nil
	}
	keeper, err := h.tickets.locked()
	if err != nil {
		return nil, err
	}
	s, err := keeper.DecryptTicket(sealed, cs)
	if err != nil || s == nil || len(s.Extra) == 0 {
		return nil, nil // a ticket that is no good is no error
	}
	last := len(s.Extra) - 1
	of, ok := parseTerms(s.Extra[last])
	if now := h.tickets.opts.Now().Unix(); !ok || of.scope != h.scope() || now < of.began || now >= of.until {
		return nil, nil
	}
	s.Extra = s.Extra[:last] // the next ticket gets terms of its own
	h.began = time.Unix(of.began, 0)
	return s, nil
}

// scope is what a session is good for: this leaf, and with it the identity that
// the client asked for, and what is trusted.
func (h *ticketing) scope() [sha256.Size]byte {
	return scopeOf(h.leaf, h.tickets.provider.Bundle())
}

func scopeOf(leaf *tls.Certificate, b *Bundle) [sha256.Size]byte {
	shown := digest([]*x509.Certificate{leaf.Leaf})
	return sha256.Sum256(append(shown[:], b.sum[:]...))
}

// locked returns the keeper, whose keys are no older than a session may be.
func (t *Tickets) locked() (*tls.Config, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.opts.Now(); len(t.keys) == 0 || now.Sub(t.made) >= sessionLife || now.Before(t.made) {
		var key [32]byte
		if _, err := rand.Read(key[:]); err != nil {
			return nil, fmt.Errorf("make ticket key: %w", err)
		}
		t.keys = append([][32]byte{key}, t.keys[:min(len(t.keys), 1)]...)
		t.made = now
		t.keeper.SetSessionTicketKeys(t.keys)
	}
	return t.keeper, nil
}
