// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// skewed is a clock that goes wrong by a constant.
type skewed time.Duration

func (s skewed) Now() time.Time                         { return time.Now().Add(time.Duration(s)) }
func (s skewed) After(d time.Duration) <-chan time.Time { return time.After(d) }

// caOf makes a CA for test meshes in dir, as a node whose clock is skewed would.
func caOf(l *lab, dir string, clock skewed) {
	l.Helper()
	td := spiffeid.RequireTrustDomainFromString(meshnode.TrustDomain)
	if _, err := embedded.Init(dir, td, embedded.InitOptions{Clock: clock}); err != nil {
		l.Fatal(err)
	}
}

// badPeer is the other end of a tunnel with a leaf of its own choice: what a
// node would be whose clock, CA or workloads are not as they should be.
type badPeer struct {
	*lab
	provider *embedded.Provider
	id       spiffeid.ID
	clock    skewed
	received atomic.Int64 // bytes after the handshake
}

// newBadPeer has a leaf of the CA in dir.
func newBadPeer(l *lab, dir, workload string, clock skewed) *badPeer {
	l.Helper()
	p, err := embedded.Open(embedded.Options{Dir: dir, LeafTTL: time.Hour, Clock: clock})
	if err != nil {
		l.Fatal(err)
	}
	return &badPeer{lab: l, provider: p, id: spiffeid.RequireFromString(meshnode.Identity(workload)), clock: clock}
}

// Local implements identity.Local: whatever the client asks for, it gets this.
func (p *badPeer) Local(string) (spiffeid.ID, bool) { return p.id, true }

// serve takes tunnels on a host, as its node proxy would.
func (p *badPeer) serve(h *testnet.Host) {
	p.Helper()
	ln, err := h.Listen("tcp", net.JoinHostPort(h.Addr4().String(), "15008"))
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { ln.Close() })
	config := identity.ServerConfig(p.provider, p, identity.Options{Now: p.clock.Now})
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go p.read(tls.Server(c, config))
		}
	}()
}

// read counts what comes until the end.
func (p *badPeer) read(c *tls.Conn) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		p.received.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// dial makes a tunnel to a workload's node and returns what ends it.
func (p *badPeer) dial(from *testnet.Host, to *testnet.Host, workload string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	raw, err := from.DialContext(ctx, "tcp", net.JoinHostPort(to.Addr4().String(), "15008"))
	if err != nil {
		return err
	}
	defer raw.Close()
	want := spiffeid.RequireFromString(meshnode.Identity(workload))
	config := identity.ClientConfig(p.provider, p.id, []spiffeid.ID{want}, identity.ServerName(want), identity.Options{Now: p.clock.Now})
	config.VerifyConnection = nil // this end is content with anything
	c := tls.Client(raw, config)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	// In TLS 1.3 the server's opinion of the client comes after the handshake.
	return p.read(c)
}
