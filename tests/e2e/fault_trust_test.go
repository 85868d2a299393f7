// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// TestWithdrawnRoot: an operator takes a root out of the bundle of node a. What
// is open goes on, whatever is new is verified with what is trusted now.
func TestWithdrawnRoot(t *testing.T) {
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	files := issuer{l, filepath.Join(a.Dir(), "leaves"), filepath.Join(a.Dir(), "roots.pem")}
	files.issue("client", "other", "near")
	good, err := os.ReadFile(files.bundle)
	if err != nil {
		t.Fatal(err)
	}
	foreign := l.caDir + "-foreign"
	caOf(l, foreign, 0)
	stranger, err := credentials.Issue(foreign, meshnode.Identity("client"))
	if err != nil {
		t.Fatal(err)
	}
	bad := inPEM("CERTIFICATE", stranger.Root.Raw)
	files.write(files.bundle, bytes.Join([][]byte{good, bad}, nil))
	n := files.start()
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	stays := l.call(a, "client", "-tcp", "far:80", "-rate", "50")
	fresh := l.call(a, "client", "-tcp", "far:80", "-rate", "50", "-fresh")

	// A root that signed nothing here: nobody notices.
	files.write(files.bundle, good)
	l.logged(n, "trust was withdrawn", "roots=1")
	l.awaitCall(fresh, mark(fresh)+1, "a call that succeeds", succeeded)
	l.undisturbed(fresh, 0)
	l.undisturbed(stays, 0)

	// The one that signed node b's leaves: new connections are refused.
	from := mark(stays)
	files.write(files.bundle, bad)
	l.eventually("connections are refused", func() error {
		if d := l.dial(a, "client", "-address", "far:80", "-send", "hello"); d.OK {
			return errors.New("they still work")
		}
		return nil
	})
	l.refused("a", "outbound peer_untrusted")
	l.awaitCall(stays, mark(stays)+1, "a call that succeeds", succeeded)
	l.undisturbed(stays, from)

	// Trusted again.
	files.write(files.bundle, good)
	l.works(a, "client", "far:80")
	l.undisturbed(stays, 0)
}

// TestExpiredGrace: connections end as long after their leaf as the
// configuration says, in tunnels and as lines of their own.
func TestExpiredGrace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, mesh, from, cgroup, to, server, at, port string
	}{
		{"hbone", faultMesh, "a", "client", "b", "far", "10.77.0.2:8080", "far:80"},
		{"mtls", lineMesh, "b", "front", "a", "web", "10.77.0.1:7001", "web:80"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, tc.mesh, "a", "b")
			l.shortLeaves()
			for _, host := range []string{"a", "b"} {
				l.startAs(host, meshnode.Options{
					Extra: "listeners: {inboundMTLS: 20000}\n", Env: []string{"MESHPROXY_IDENTITY_EXPIRED_GRACE=1s"},
				})
			}
			l.serve(l.net.Host(tc.to), tc.server, "-name", tc.server, "-tcp", tc.at)
			began := time.Now() // no leaf is older
			open := l.hold(l.net.Host(tc.from), tc.cgroup, tc.port, 3)
			if _, err := open.Stdout().WaitString(l.longer(3*time.Minute), `"`+workload.HeldEnded+`"`); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < shortLeaf {
				t.Errorf("connections ended after %v, before their leaf", took)
			}
			l.awaitHeld(open, workload.HeldEnded, 3)
			l.works(l.net.Host(tc.from), tc.cgroup, tc.port)
		})
	}
}

// shortLeaf is how long leaves live after shortLeaves.
const shortLeaf = 20 * time.Second

// shortLeaves makes a CA whose leaves live for less than a configuration may
// say; they are renewed when half of it is over.
func (l *lab) shortLeaves() {
	l.Helper()
	l.caDir += "-short"
	_, err := embedded.Init(l.caDir, spiffeid.RequireTrustDomainFromString(meshnode.TrustDomain), embedded.InitOptions{MaxLeafTTL: shortLeaf})
	must(l.T, err)
}
