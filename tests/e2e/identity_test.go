// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/peers/credentials"
)

// issuer plays the one who renews the leaves of a node with the files provider.
type issuer struct {
	*lab
	dir    string
	bundle string
}

// issue writes a new leaf for each workload, as an operator's script does it.
func (i issuer) issue(workloads ...string) {
	i.Helper()
	for _, w := range workloads {
		made, err := credentials.Issue(i.caDir, meshnode.Identity(w))
		if err != nil {
			i.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(made.Leaf.PrivateKey)
		if err != nil {
			i.Fatal(err)
		}
		// The certificate is there before its key: the pair doesn't match for
		// a moment, and must not be used then.
		i.write(filepath.Join(i.dir, w, "tls.crt"), inPEM("CERTIFICATE", made.Leaf.Certificate[0]))
		i.write(filepath.Join(i.dir, w, "tls.key"), inPEM("PRIVATE KEY", key))
		i.write(i.bundle, inPEM("CERTIFICATE", made.Root.Raw))
	}
}

func inPEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// start runs node a with the leaves.
func (i issuer) start() *meshnode.Node {
	i.Helper()
	n, err := meshnode.Start(i.ctx(), meshnode.Options{
		Host: i.net.Host("a"), Program: []string{programs.meshproxy}, MeshFile: i.meshFile, CADir: i.caDir,
		Env: []string{
			"MESHPROXY_IDENTITY_PROVIDER=files",
			"MESHPROXY_IDENTITY_FILES_DIR=" + i.dir,
			"MESHPROXY_IDENTITY_FILES_BUNDLE=" + i.bundle,
		},
	})
	if err != nil {
		i.Fatal(err)
	}
	i.nodes["a"] = n
	i.Cleanup(func() {
		if i.Failed() {
			i.Logf("node a:\n%s%s", n.Stderr().Tail(4000), n.Stdout().Tail(2000))
		}
	})
	return n
}

func (i issuer) write(path string, text []byte) {
	i.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		i.Fatal(err)
	}
	if err := os.WriteFile(path+".next", text, 0o600); err != nil {
		i.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		i.Fatal(err)
	}
}

// serials are those of the leaves that a node uses.
func (l *lab) serials(host string) map[string]string {
	l.Helper()
	ca, err := l.nodes[host].Admin.CA(l.ctx())
	if err != nil {
		l.Fatal(err)
	}
	found := map[string]string{}
	for _, leaf := range ca.Leaves {
		found[leaf.Workload] = leaf.Serial
	}
	return found
}

// TestLeavesFromFiles: node a has its leaves from files, b from the CA itself.
// Nobody notices when they are renewed.
func TestLeavesFromFiles(t *testing.T) {
	l := newLab(t, reloadMesh+"  - {name: near, ports: [{port: 81}], endpoints: [{address: 10.77.0.1, port: 8081, node: a, workload: client}]}\n", "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	files := issuer{l, filepath.Join(a.Dir(), "leaves"), filepath.Join(a.Dir(), "roots.pem")}
	files.issue("client")
	files.start()
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.serve(a, "client", "-name", "near", "-tcp", "10.77.0.1:8081")
	out := l.call(a, "client", "-tcp", "far:80", "-rate", "200")
	in := l.call(b, "far", "-tcp", "near:81", "-rate", "100", "-fresh")
	fresh := l.call(a, "client", "-tcp", "far:80", "-rate", "100", "-fresh")
	if st := l.status("a"); st.Identity.Provider != "files" || st.Identity.Leaves != 1 || len(st.Identity.Missing) > 0 {
		t.Errorf("identity: %+v", st.Identity)
	}

	for range 3 {
		before := l.serials("a")["client"]
		files.issue("client")
		l.eventually("new leaf is in use", func() error {
			if now := l.serials("a")["client"]; now == before || now == "" {
				return fmt.Errorf("its serial is %s", now)
			}
			return nil
		})
		if got := l.works(a, "client", "far:80"); got != "far" {
			t.Errorf("served by %q", got)
		}
	}
	// What is not a leaf is not used either.
	serial := l.serials("a")["client"]
	files.write(filepath.Join(files.dir, "client", "tls.crt"), []byte("garbage"))
	l.eventually("the node says so", func() error {
		st := l.status("a")
		if !strings.Contains(fmt.Sprint(st.Problems), "tls.crt") || st.State != api.StateDegraded {
			return fmt.Errorf("%s, %v", st.State, st.Problems)
		}
		return nil
	})
	if now := l.serials("a")["client"]; now != serial {
		t.Errorf("serial %s, want that of the last good leaf %s", now, serial)
	}
	from := mark(fresh)
	l.awaitCall(fresh, from, "call with the last good leaf", succeeded)
	files.issue("client")
	l.eventually("node is ready", func() error { return want(string(l.status("a").State), "ready") })
	l.undisturbed(out, 0)
	l.undisturbed(in, 0)
	l.undisturbed(fresh, 0)
}

// TestWorkloadWithoutLeaf: it is refused with the reason, and the others are
// not.
func TestWorkloadWithoutLeaf(t *testing.T) {
	l := newLab(t, policyMesh+allowAll, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	files := issuer{l, filepath.Join(a.Dir(), "leaves"), filepath.Join(a.Dir(), "roots.pem")}
	files.issue("good", "near")
	n := files.start()
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	if got := l.works(a, "good", "far:80"); got != "far" {
		t.Errorf("served by %q", got)
	}
	l.fails(a, "bad", "far:80", "ECONNRESET at read")
	l.refused("a", "outbound no_leaf")
	if missing := l.status("a").Identity.Missing; fmt.Sprint(missing) != "[bad]" {
		t.Errorf("missing leaves of %v, want bad's", missing)
	}
	shell{l, n.ConfigPath()}.says([]string{"status", "--socket", n.Socket()}, "none for bad")
	files.issue("bad")
	if got := l.works(a, "bad", "far:80"); got != "far" {
		t.Errorf("served by %q", got)
	}
}
