// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxSessions bounds how many are kept, at something like 4 KiB each.
const maxSessions = 1024

// classical are the key exchanges of handshakes that resume. A session's secret
// goes into their keys; it came from a handshake with X25519MLKEM768 where the
// server has that, so they are as safe from who records them today as that was,
// at a third less for the whole handshake.
var classical = []tls.CurveID{tls.X25519, tls.CurveP256}

// Sessions are the TLS sessions that a client can resume, each under a key that
// says who connects to whom. They are kept for one leaf of the client and one
// trust bundle, and end with the server's chain or an hour after the handshake
// in which both sides showed their leaves.
//
// Only sessions with servers that say so in their tickets are kept (see
// Tickets). Consul's Go SDK, and the builtin proxy with it, asks for
// authorization in VerifyPeerCertificate, which crypto/tls skips in resumed
// handshakes: whoever resumed there would be let in for days after an intention
// denies it. Nothing tells such a server from an Envoy beforehand.
type Sessions[K comparable] struct {
	provider Provider
	opts     Options

	mu    sync.Mutex
	known map[K]*session
}

// session is one that can be resumed. It is not changed.
type session struct {
	tls          *tls.ClientSessionState
	leaf         *tls.Certificate
	bundle       *Bundle
	began, until time.Time
}

// NewSessions makes an empty store. Options are those of ClientConfig.
func NewSessions[K comparable](p Provider, opts Options) *Sessions[K] {
	return &Sessions[K]{provider: p, opts: opts.withDefaults(), known: make(map[K]*session)}
}

// Config is ClientConfig for one connection, which resumes the session of the
// key if there is one. The key must be of these identities and this name.
func (s *Sessions[K]) Config(ctx context.Context, key K, source spiffeid.ID, accepted []spiffeid.ID, serverName string) (*tls.Config, error) {
	leaf, err := leafWithin(ctx, s.provider, source, s.opts.LeafTimeout)
	if err != nil {
		return nil, err
	}
	c := ClientConfig(s.provider, source, accepted, serverName, s.opts)
	if serverName == "" {
		return c, nil // crypto/tls would ask a connection for its address that is none any more
	}
	// A resumed handshake shows no certificate, but it is this one's; who looks
	// for it finds it here.
	c.Certificates = []tls.Certificate{*leaf}
	c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		recordOf(info.Context()).local = source
		return leaf, nil
	}
	h := &resuming[K]{store: s, key: key, next: session{leaf: leaf, bundle: s.provider.Bundle(), began: s.opts.Now()}}
	if h.old = s.find(key, &h.next); h.old != nil {
		h.next.began = h.old.began
		c.CurvePreferences = classical
	}
	verify := c.VerifyConnection
	c.VerifyConnection = func(state tls.ConnectionState) error { return h.verified(state, verify(state)) }
	c.SessionTicketsDisabled = false
	c.ClientSessionCache = h
	return c, nil
}

// Forget drops the session of a key: a handshake has failed.
func (s *Sessions[K]) Forget(key K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, key)
}

// find returns the session of a key if it is still good for one like this.
func (s *Sessions[K]) find(key K, like *session) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.known[key]
	if old == nil {
		return nil
	}
	if now := like.began; old.leaf != like.leaf || old.bundle.sum != like.bundle.sum || now.Before(old.began) || !now.Before(old.until) {
		delete(s.known, key)
		return nil
	}
	return old
}

func (s *Sessions[K]) keep(key K, n *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.known) >= maxSessions {
		for any := range s.known { // in no order
			delete(s.known, any)
			break
		}
	}
	s.known[key] = n
}

// resuming is the cache of one connection.
type resuming[K comparable] struct {
	store  *Sessions[K]
	key    K
	old    *session // that is offered, if any
	next   session  // that may come of this handshake
	spoilt bool     // next is not to be kept
}

// verified hears how the verification of the server ended, which knows its chain.
func (h *resuming[K]) verified(state tls.ConnectionState, err error) error {
	switch {
	case err != nil:
		h.spoilt = true
	case h.old != nil && !state.DidResume:
		// The server has a new leaf, say. The next handshake shall be one with
		// all key exchanges.
		h.spoilt = true
		h.store.Forget(h.key)
	}
	h.next.until = h.next.began.Add(sessionLife)
	if e := PeerExpires(state); e.Before(h.next.until) {
		h.next.until = e
	}
	return err
}

// Get implements tls.ClientSessionCache.
func (h *resuming[K]) Get(string) (*tls.ClientSessionState, bool) {
	if h.old == nil {
		return nil, false
	}
	return h.old.tls, true
}

// Put implements tls.ClientSessionCache.
func (h *resuming[K]) Put(_ string, s *tls.ClientSessionState) {
	if s == nil {
		h.store.Forget(h.key)
		return
	}
	if h.spoilt || h.next.tls != nil {
		return
	}
	if ticket, _, err := s.ResumptionState(); err != nil || !bytes.HasPrefix(ticket, ticketMark) {
		return
	}
	h.next.tls = s
	h.store.keep(h.key, &h.next)
}

var _ tls.ClientSessionCache = (*resuming[string])(nil)
