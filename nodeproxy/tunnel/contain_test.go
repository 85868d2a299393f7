// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// blow panics while it is armed, with words that mean something else elsewhere.
type blow struct{ armed atomic.Bool }

func (b *blow) up() {
	if b.armed.Load() {
		panic("tls: certificate of nobody")
	}
}

// panicky is an identity whose code panics where it is told to.
type panicky struct {
	*tunneltest.CA
	making, verifying blow
	forgotten         atomic.Int32
}

func (p *panicky) ClientConfig(ctx context.Context, key *tunnel.Key) (*tls.Config, error) {
	p.making.up()
	c, err := p.CA.ClientConfig(ctx, key)
	if err == nil {
		p.watch(c)
	}
	return c, err
}

// Forget implements tunnel.ForgetfulIdentity.
func (p *panicky) Forget(*tunnel.Key) { p.forgotten.Add(1) }

// config is a server's.
func (p *panicky) config() *tls.Config {
	p.making.up()
	c := p.CA.ServerConfig(func(string) spiffeID { return tunneltest.ID("server") })
	p.watch(c)
	return c
}

func (p *panicky) watch(c *tls.Config) {
	verify := c.VerifyConnection
	c.VerifyConnection = func(s tls.ConnectionState) error {
		p.verifying.up()
		return verify(s)
	}
}

// lockedLog is a log that can be read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestHandshakePanics: a panic in a handshake ends that connection, at either end.
func TestHandshakePanics(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for name, tt := range map[string]struct {
		client bool
		at     func(*panicky) *blow
		forget bool // the session may be to blame
	}{
		"client makes its configuration": {true, func(p *panicky) *blow { return &p.making }, false},
		"client verifies":                {true, func(p *panicky) *blow { return &p.verifying }, true},
		"server makes its configuration": {false, func(p *panicky) *blow { return &p.making }, false},
		"server verifies":                {false, func(p *panicky) *blow { return &p.verifying }, false},
	} {
		t.Run(name, func(t *testing.T) {
			var log lockedLog
			logger := slog.New(slog.NewTextHandler(&log, nil))
			near, far := &panicky{CA: ca}, &panicky{CA: ca}
			clients, servers := make(chan tunnel.Handshake, 10), make(chan tunnel.Handshake, 10)
			s := newServer(t, ca, tunnel.Options{}, echo, func(o *tunnel.ServerOptions) {
				o.Config, o.Logger = far.config, logger
				o.Observe = func(h tunnel.Handshake) { servers <- h }
			})
			c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{
				Identity: near, Logger: logger, Observe: func(h tunnel.Handshake) { clients <- h },
			})
			who, seen := far, servers
			if tt.client {
				who, seen = near, clients
			}
			tt.at(who).armed.Store(true)
			w := c.open(keyTo(s.addr, "a", "server"), patience)
			h := wait(t, seen, "the handshake")
			var p *loop.PanicError
			if !errors.As(h.Err, &p) || reason.Of(h.Err) != reason.Internal || h.Client != tt.client {
				t.Errorf("handshake %+v, reason %v", h, reason.Of(h.Err))
			}
			if got := log.String(); !strings.Contains(got, "handshake panicked") || !strings.Contains(got, "(*blow).up") {
				t.Errorf("want the stack in the log: %s", got)
			}
			if tt.client {
				if err := wait(t, w.failed, "the failure"); reason.Of(err) != reason.Internal {
					t.Error(err)
				}
			}
			if got := near.forgotten.Load() > 0; tt.client && got != tt.forget {
				t.Errorf("session forgotten: %t", got)
			}
			tt.at(who).armed.Store(false)
			c.open(keyTo(s.addr, "b", "server"), patience).must().ping("still here")
		})
	}
}
