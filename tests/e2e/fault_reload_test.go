// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
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
	if took := time.Since(changed); took > time.Second {
		t.Errorf("a valid mesh file was in force after %v", took)
	}
	l.fails(a, "client", "far:80", refusedAtOnce, time.Second)
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

// TestBadStart: what keeps a node from starting is said in one line, and the
// exit status is 2 for what the configuration says and 1 for the rest.
func TestBadStart(t *testing.T) {
	l := newLab(t, faultMesh, "a", "b")
	a := l.net.Host("a")
	other := filepath.Join(l.net.Dir(), "other-ca")
	for _, tc := range []struct {
		name   string
		break_ func(*meshnode.Options)
		status int
		says   []string
	}{
		{"no CA", func(o *meshnode.Options) { o.CADir = other }, 1, []string{"start identity", "other-ca", "no such file"}},
		{"CA that others can read", func(o *meshnode.Options) {
			caOf(l, other, 0)
			if err := os.Chmod(other, 0o755); err != nil {
				t.Fatal(err)
			}
			o.CADir = other
		}, 1, []string{"start identity", "other-ca"}},
		{"no mesh file", func(o *meshnode.Options) { o.MeshFile = "/nowhere/mesh.yaml" }, 2, []string{"/nowhere/mesh.yaml"}},
		{"unknown key", func(o *meshnode.Options) { o.Extra = "colour: blue\n" }, 2, []string{"meshproxy.yaml:", "colour", "allowed"}},
		{"no BPF file system", func(o *meshnode.Options) { o.Env = []string{"MESHPROXY_BPF_FS=" + l.net.Dir()} }, 1, []string{"start capture", "bpf file system"}},
		{"port taken", func(o *meshnode.Options) {
			l.serve(a, "nobody", "-tcp", "127.0.0.1:15001")
		}, 1, []string{"start listeners", "15001", "address already in use"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := meshnode.Options{Host: a, Program: []string{programs.meshproxy}, MeshFile: l.meshFile, CADir: l.caDir}
			tc.break_(&o)
			config, err := meshnode.WriteConfig(o)
			if err != nil {
				t.Fatal(err)
			}
			p, err := a.Start(testnet.Command{
				Name: "meshproxy", Path: programs.meshproxy, Args: []string{"run", "--config", config}, Env: o.Env, Cgroup: meshnode.Cgroup,
			})
			if err != nil {
				t.Fatal(err)
			}
			_ = p.Wait(l.in(t).ctx())
			said := p.Stderr().String()
			if p.ExitCode() != tc.status || !containsAll(said, tc.says) {
				t.Errorf("exit status %d, want %d; it says %s, want %q", p.ExitCode(), tc.status, said, tc.says)
			}
			if strings.Contains(said, "goroutine") {
				t.Error("it crashed")
			}
		})
	}
}
