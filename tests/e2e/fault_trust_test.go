// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

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
// configuration says.
func TestExpiredGrace(t *testing.T) {
	t.Parallel()
	l := newLab(t, faultMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	short := meshnode.Options{Env: []string{
		"MESHPROXY_IDENTITY_EMBEDDED_LEAF_TTL=1m", "MESHPROXY_IDENTITY_EXPIRED_GRACE=1s",
	}}
	l.startAs("a", short)
	l.startAs("b", short)
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	open := l.hold(a, "client", "far:80", 3)
	began := time.Now()
	if _, err := open.Stdout().WaitString(l.longer(3*time.Minute), `"`+workload.HeldEnded+`"`); err != nil {
		t.Fatal(err)
	}
	// The leaf was not yet older than half its life when it was used.
	if took := time.Since(began); took < 20*time.Second {
		t.Errorf("connections ended after %v", took)
	}
	l.awaitHeld(open, workload.HeldEnded, 3)
	l.works(a, "client", "far:80")
}
