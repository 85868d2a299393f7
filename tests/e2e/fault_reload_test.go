// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// reports waits until a node's status has a problem with all the parts.
func (l *lab) reports(host string, parts ...string) {
	l.Helper()
	l.eventually(fmt.Sprintf("problem with %q", parts), func() error {
		st := l.status(host)
		for _, p := range st.Problems {
			if containsAll(p, parts) && st.State == api.StateDegraded {
				return nil
			}
		}
		return fmt.Errorf("%s with %q", st.State, st.Problems)
	})
}

func (l *lab) noProblem(host string) {
	l.Helper()
	l.eventually("no problem", func() error {
		if st := l.status(host); len(st.Problems) > 0 || st.State != api.StateReady {
			return fmt.Errorf("%s with %q", st.State, st.Problems)
		}
		return nil
	})
}

// TestInvalidMeshFile: a mesh file that is not valid changes nothing, and the
// node says what is wrong with it; a valid one is in force within a second.
func TestInvalidMeshFile(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{})
	a := l.net.Host("a")
	valid := l.mesh
	calls := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "100")
	for _, tc := range []struct{ name, text, says string }{
		{"syntax", valid + "services: [}\n", "mesh.yaml:"},
		{"unknown key", valid + "servises: []\n", "servises"},
		{"impossible value", strings.Replace(valid, "10.77.0.2, port: 8080", "10.77.0.2, port: 80800", 1), "80800"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := l.in(t)
			from := mark(calls)
			l.writeMesh(tc.text)
			l.reports("a", "static", "mesh.yaml", tc.says)
			l.logged(l.nodes["a"], tc.says)
			l.awaitCall(calls, mark(calls), "a call that succeeds", succeeded)
			l.undisturbed(calls, from)
		})
	}
	l.writeMesh(strings.Replace(valid, "name: far, ports: [{port: 80}]", "name: far, ports: [{port: 90}]", 1))
	changed := time.Now()
	l.eventually("the change is in force", func() error {
		if d := l.dial(a, "client", "-address", "far:90", "-send", "hello"); !d.OK {
			return fmt.Errorf("%s at %s", d.Error, d.Stage)
		}
		return nil
	})
	t.Logf("a valid mesh file was in force after %v", time.Since(changed))
	l.eventually("what was before is not", func() error {
		d := l.dial(a, "client", "-address", "far:80", "-send", "hello")
		if d.OK {
			return errors.New("it still works")
		}
		return want(d.Error+" at "+d.Stage, refusedAtOnce)
	})
	l.writeMesh(valid)
	l.works(a, "client", "far:80")
	l.noProblem("a")
}

// TestMeshFileIsGone: so is a file that cannot be read.
func TestMeshFileIsGone(t *testing.T) {
	l := twoFaultNodes(t, meshnode.Options{})
	a := l.net.Host("a")
	calls := l.call(a, "client", "-tcp", "far:80", "-fresh", "-rate", "100")
	if err := os.Remove(l.meshFile); err != nil {
		t.Fatal(err)
	}
	l.reports("a", "static", "mesh.yaml", "does not exist")
	l.writeMesh(l.mesh)
	l.noProblem("a")
	l.undisturbed(calls, 0)
}

// TestBadStart: what keeps a node from starting is said in a line, and the exit
// status is 2 for what the configuration says and 1 for the rest. Nothing is
// left in the kernel then that anybody could notice.
func TestBadStart(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*lab, *meshnode.Options)
		status  int
		says    []string
	}{
		{"no CA", func(l *lab, o *meshnode.Options) { o.CADir += "-other" }, 1, []string{"start identity", "ca-other", "has no CA"}},
		{"CA key that others can read", func(l *lab, _ *meshnode.Options) {
			keys, err := filepath.Glob(filepath.Join(l.caDir, "*.key"))
			if err != nil || len(keys) != 1 {
				l.Fatalf("keys of the CA: %v, %v", keys, err)
			}
			if err := os.Chmod(keys[0], 0o644); err != nil {
				l.Fatal(err)
			}
		}, 1, []string{"start identity", ".key", "0644"}},
		{"CA of another trust domain", func(_ *lab, o *meshnode.Options) {
			o.Env = []string{"MESHPROXY_NODE_TRUST_DOMAIN=elsewhere"}
		}, 1, []string{"start identity", meshnode.TrustDomain, "elsewhere"}},
		{"no mesh file", func(_ *lab, o *meshnode.Options) { o.MeshFile = "/nowhere/mesh.yaml" }, 2, []string{"/nowhere/mesh.yaml", "does not exist"}},
		{"invalid mesh file", func(l *lab, _ *meshnode.Options) { l.writeMesh("services: 1\n") }, 2, []string{"mesh.yaml:1", "services"}},
		{"unknown key", func(_ *lab, o *meshnode.Options) { o.Extra = "colour: blue\n" }, 2, []string{"meshproxy.yaml:", "colour", "allowed"}},
		{"no BPF file system", func(l *lab, o *meshnode.Options) {
			o.Env = []string{"MESHPROXY_BPF_FS=" + l.net.Dir()}
		}, 1, []string{"start capture", "bpf file system"}},
		{"port taken", func(l *lab, _ *meshnode.Options) {
			l.serve(l.net.Host("a"), "nobody", "-tcp", "127.0.0.1:15001")
		}, 1, []string{"start listeners", "15001", "address already in use"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, faultMesh, "a", "b")
			a, b := l.net.Host("a"), l.net.Host("b")
			l.serve(b, "plain", "-name", "plain", "-tcp", "10.77.0.2:8080")
			o := meshnode.Options{Host: a, MeshFile: l.meshFile, CADir: l.caDir}
			tc.prepare(l, &o)
			p := l.run(o)
			select {
			case <-p.Done():
			case <-l.ctx().Done():
				t.Fatal("it runs")
			}
			said := p.Stderr().String()
			if p.ExitCode() != tc.status || !containsAll(said, tc.says) {
				t.Errorf("exit status %d, want %d; it says %s, want %q", p.ExitCode(), tc.status, said, tc.says)
			}
			if strings.Contains(said, "goroutine") {
				t.Error("it crashed")
			}
			d := l.dial(a, "client", "-address", "10.77.0.2:8080", "-send", "hello")
			if s := seen(t, d); s.Accepted != d.Local {
				t.Errorf("the server accepted %s, the client is %s", s.Accepted, d.Local)
			}
		})
	}
}

// run starts a node without waiting for anything. Program is what comes before
// the binary.
func (l *lab) run(o meshnode.Options) *testnet.Process {
	l.Helper()
	config, err := meshnode.WriteConfig(o)
	if err != nil {
		l.Fatal(err)
	}
	command := append(slices.Clone(o.Program), programs.meshproxy, "run", "--config", config)
	p, err := o.Host.Start(testnet.Command{
		Name: "meshproxy", Path: command[0], Args: command[1:], Env: o.Env, ExtraFiles: o.Files, Cgroup: meshnode.Cgroup,
	})
	if err != nil {
		l.Fatal(err)
	}
	return p
}
