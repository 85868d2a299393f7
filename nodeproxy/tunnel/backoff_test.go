// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/tunneltest"
)

// TestBackoff: a peer that proves the wrong identity is not asked for each
// connection.
func TestBackoff(t *testing.T) {
	ca := tunneltest.NewCA(t)
	s := newServer(t, ca, tunnel.Options{}, echo, nil)
	c := newClient(t, tunnel.Options{}, tunnel.PoolOptions{Identity: ca})
	wrong := keyTo(s.addr, "a", "somebody-else")
	fails := func() {
		t.Helper()
		err := wait(t, c.open(wrong, patience).failed, "the failure")
		if got := reason.Of(err); got != reason.IdentityMismatch {
			t.Errorf("reason %s: %v", got, err)
		}
	}
	for range 500 {
		fails()
	}
	if n := c.stats().Dials; n == 0 || n > 10 {
		t.Errorf("%d dials for 500 connections", n)
	}
	c.open(keyTo(s.addr, "a", "server"), patience).must().ping("another key")
	// Pauses end by themselves, and with new leaves or trust.
	dials := c.stats().Dials
	c.do(func() { c.pool.Retire(func(*tunnel.Key, *tunnel.Peer) bool { return false }) })
	fails()
	if n := c.stats().Dials; n != dials+1 {
		t.Errorf("%d dials after the trust changed, want 1", n-dials)
	}
	dials = c.stats().Dials
	again, connect := newCaller(c), block(t)
	again.failed = make(chan error, 1<<20)
	c.until("the end of the pause", func() bool {
		c.pool.Open(wrong, connect, patience, again)
		return c.pool.Stats().Dials > dials
	})
}
