// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestRotationUnderLoad changes the root again and again while workloads of two
// nodes connect to each other, over TLS 1.3 and as sidecars do it. No handshake
// may fail.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	s := peer.Start(t, peer.Options{})
	td := domainOf(t, s)
	client, server := idOf(td, "client"), idOf(td, "web")
	// They renew at different moments, as two nodes do.
	a := open(t, s, func(o *Options, _ *consulagent.Settings) { o.RotationWindow = 100 * time.Millisecond })
	b := open(t, s, func(o *Options, _ *consulagent.Settings) { o.RotationWindow = 3 * time.Second })
	a.Keep([]spiffeid.ID{client})
	b.Keep([]spiffeid.ID{server})
	a.awaitLeaf(t, client)
	b.awaitLeaf(t, server)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var handshakes atomic.Int64
	var load errgroup.Group
	names := identity.NewNames([]spiffeid.ID{server}, spiffeid.ID{})
	for _, opts := range []identity.Options{{}, {MinVersion: tls.VersionTLS12, Protocols: []string{}}} {
		cc := identity.ClientConfig(a, client, []spiffeid.ID{server}, "", opts)
		if opts.MinVersion != 0 {
			cc.MaxVersion = tls.VersionTLS12
		}
		sc := identity.ServerConfig(b, names, opts)
		load.Go(func() error {
			for ctx.Err() == nil {
				if c, s := identitytest.Handshake(t, cc, sc); c.Err != nil || s.Err != nil {
					t.Errorf("after %d handshakes: client %v, server %v", handshakes.Load(), c.Err, s.Err)
					return nil
				}
				handshakes.Add(1)
			}
			return nil
		})
	}
	for roots := 2; roots <= 4; roots++ {
		oldBundle, oldServer := a.Bundle(), b.peek(server)
		s.RotateCA(t)
		for _, f := range []*fixture{a, b} {
			f.await(t, "new roots and leaf", func() bool {
				id := client
				if f == b {
					id = server
				}
				return len(f.Bundle().Roots(td)) == roots && f.trusted.Load().signed(f.peek(id))
			})
		}
		if b.peek(server) == oldServer {
			t.Fatal("the leaf is the old one")
		}
		// A peer that has not heard of the new root believes its leaves, too.
		if _, err := identity.Verify(chain(t, b.peek(server)), oldBundle, time.Now()); err != nil {
			t.Errorf("with the roots of before: %v", err)
		}
		at := handshakes.Load()
		a.await(t, "more handshakes", func() bool { return handshakes.Load() > at+20 || t.Failed() })
	}
	stop()
	_ = load.Wait() // reported there
	t.Logf("%d handshakes", handshakes.Load())
}

func chain(t *testing.T, leaf *tls.Certificate) (certs []*x509.Certificate) {
	t.Helper()
	for _, der := range leaf.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
	return certs
}
