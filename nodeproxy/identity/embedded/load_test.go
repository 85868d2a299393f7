// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/identitytest"
)

// TestRotationUnderLoad lets ten days pass between two nodes that share a CA
// and shake hands all the while; roots rotate daily, leaves twice a day. No
// handshake may fail.
func TestRotationUnderLoad(t *testing.T) {
	clock := identitytest.NewClock()
	dir := newCA(t, clock)
	a, b := open(t, dir, clock), open(t, dir, clock)
	opts := identity.Options{Now: clock.Now}
	client := identity.ClientConfig(a, curl, []spiffeid.ID{web}, identity.ServerName(web), opts)
	server := identity.ServerConfig(b, identity.NewNames([]spiffeid.ID{web}, spiffeid.ID{}), opts)

	var done atomic.Bool
	var wg sync.WaitGroup
	shaken := make(chan struct{}, 1)
	var count, failed atomic.Int64
	for range 4 {
		wg.Go(func() {
			for !done.Load() {
				if err := shakeHands(t.Context(), client, server); err != nil {
					failed.Add(1)
					t.Errorf("handshake: %v", err)
				}
				count.Add(1)
				select {
				case shaken <- struct{}{}:
				default:
				}
			}
		})
	}
	roots := make(map[string]bool)
	const step = 30 * time.Minute
	for i := range int(10 * 24 * time.Hour / step) {
		<-shaken
		if i%48 == 10 {
			if _, err := Rotate(dir, RotateOptions{Clock: clock, Propagation: 3 * time.Hour}); err != nil {
				t.Error(err)
			}
		}
		a.turn(t.Context())
		if i%4 == 3 { // later than the other node, within the propagation time
			b.turn(t.Context())
		}
		for _, r := range b.Bundle().Roots(td) {
			roots[identity.Fingerprint(r)] = true
		}
		clock.Advance(step)
	}
	done.Store(true)
	wg.Wait()
	if len(roots) != 11 {
		t.Errorf("%d roots seen, want 11", len(roots))
	}
	t.Logf("%d handshakes, %d failed", count.Load(), failed.Load())
}

// shakeHands ends with a byte from the server: a TLS 1.3 client has finished
// its handshake before the server looks at its certificate.
func shakeHands(ctx context.Context, client, server *tls.Config) error {
	left, right := net.Pipe()
	defer left.Close()
	answer := make(chan error, 1)
	go func() {
		defer right.Close()
		conn := tls.Server(right, server)
		_, err := identity.Handshake(ctx, conn)
		if err == nil {
			_, err = conn.Write([]byte{1})
		}
		answer <- err
	}()
	conn := tls.Client(left, client)
	_, err := identity.Handshake(ctx, conn)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	left.Close()
	return errors.Join(err, <-answer)
}
