// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBadServer: what answers on the other node has a leaf that is not to be
// trusted, or is another workload than the one that the mesh file names.
func TestBadServer(t *testing.T) {
	for _, tc := range []struct {
		name     string
		foreign  bool // of a CA that nobody trusts
		workload string
		clock    time.Duration
		reason   string
		says     []string
	}{
		{"expired", false, "far", -3 * time.Hour, "tls_expired", []string{"certificate expired", "ago", "clock"}},
		{"not yet valid", false, "far", 3 * time.Hour, "tls_expired", []string{"not yet valid", "from now", "clock skew"}},
		{"another identity", false, "impostor", 0, "identity_mismatch", []string{"sa/impostor", "want", "sa/far"}},
		{"another CA", true, "far", 0, "peer_untrusted", []string{"not trusted"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, faultMesh, "a", "b")
			a, b := l.net.Host("a"), l.net.Host("b")
			dir := l.caDir
			if tc.foreign || tc.clock != 0 {
				dir = filepath.Join(l.net.Dir(), "ca-of-peer")
			}
			if tc.clock != 0 {
				// The root is valid in both times, so that it's the leaf that
				// is judged.
				dir, l.caDir = l.caDir+"-old", l.caDir+"-old"
				caOf(l, dir, skewed(-24*time.Hour))
			} else if tc.foreign {
				caOf(l, dir, 0)
			}
			l.start("a", "")
			peer := newBadPeer(l, dir, tc.workload, skewed(tc.clock))
			peer.serve(b)
			l.fails(a, "client", "far:80", resetLater)
			l.refused("a", "outbound "+tc.reason)
			l.logged(l.nodes["a"], append(tc.says, "reason="+tc.reason, "source=client", "service=far")...)
			if n := peer.received.Load(); n > 0 {
				t.Errorf("%d bytes were sent to it", n)
			}
		})
	}
}

// TestBadClient: the same leaves, shown by a client.
func TestBadClient(t *testing.T) {
	for _, tc := range []struct {
		name    string
		foreign bool
		clock   time.Duration
		reason  string
		alert   string
		says    []string
	}{
		{"expired", false, -3 * time.Hour, "tls_expired", "expired", []string{"certificate expired", "clock"}},
		{"not yet valid", false, 3 * time.Hour, "tls_expired", "", []string{"not yet valid", "clock skew"}},
		{"another CA", true, 0, "peer_untrusted", "", []string{"not trusted"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, faultMesh, "a", "b")
			a, b := l.net.Host("a"), l.net.Host("b")
			l.caDir += "-old"
			caOf(l, l.caDir, skewed(-24*time.Hour))
			dir := l.caDir
			if tc.foreign {
				dir += "-other"
				caOf(l, dir, 0)
			}
			n := l.start("b", "")
			server := l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080", "-report-accepted")
			err := newBadPeer(l, dir, "client", skewed(tc.clock)).dial(a, b, "far")
			if err == nil || !strings.Contains(err.Error(), "remote error") {
				t.Errorf("the tunnel ended with %v, want an alert", err)
			}
			l.logged(n, append(tc.says, "refuse tunnel", "reason="+tc.reason, "10.77.0.1")...)
			if strings.Contains(server.Stdout().String(), "accepted") {
				t.Error("the application got a connection")
			}
		})
	}
}

// TestWrongIdentityInMesh: the mesh file of a expects an identity at b that no
// workload of b has; b's proxy itself says so.
func TestWrongIdentityInMesh(t *testing.T) {
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("b", "")
	server := l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080", "-report-accepted")
	right := l.mesh
	wrong := strings.Replace(right, "node: b, workload: far}]}",
		`node: b, identity: "spiffe://mesh.internal/ns/default/sa/somebody"}]}`, 1)
	if wrong == right {
		t.Fatal("nothing was replaced")
	}
	meshFile := l.meshFile
	l.meshFile += "-of-a"
	l.writeMesh(wrong)
	l.start("a", "")

	l.fails(a, "client", "far:80", resetLater)
	l.refused("a", "outbound identity_mismatch")
	l.logged(l.nodes["a"], "identity_mismatch", "sa/somebody", "service=far")
	l.logged(l.nodes["b"], "refuse tunnel", "10.77.0.1", "reason=identity_mismatch", "no workload here")
	if strings.Contains(server.Stdout().String(), "accepted") {
		t.Error("the application got a connection")
	}

	l.writeMesh(right)
	l.works(a, "client", "far:80")
	l.meshFile = meshFile
}
