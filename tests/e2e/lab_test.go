// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// The programs under test, built once by TestMain.
var programs struct{ meshproxy, workload string }

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "end-to-end tests make namespaces and load BPF programs: run them as root")
		return 1
	}
	if dir := os.Getenv("E2E_PROGRAMS"); dir != "" { // a machine without Go
		programs.meshproxy, programs.workload = filepath.Join(dir, "meshproxy"), filepath.Join(dir, "workload")
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "meshproxy-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Every user must be able to execute them.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	programs.meshproxy = filepath.Join(dir, "meshproxy")
	programs.workload = filepath.Join(dir, "workload")
	for program, pkg := range map[string]string{
		programs.meshproxy: "github.com/meshproxy/meshproxy",
		programs.workload:  "github.com/meshproxy/meshproxy/tests/workload/cmd/workload",
	} {
		build := exec.Command("go", "build", "-o", program, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if raceDetector && program == programs.meshproxy {
			build = exec.Command("go", "build", "-race", "-o", program, pkg)
		}
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", pkg, err, out)
			return 1
		}
	}
	return m.Run()
}

// clientTimeout is how long a client waits where a test doesn't say so: what hangs
// is to fail, and what is slow is not, nor is a second attempt to come too late.
const clientTimeout = "40s"

// raceDetector runs the product under the race detector; what it finds fails
// the test.
var raceDetector = os.Getenv("E2E_RACE") != ""

// patience bounds every wait; it is generous because the machine is shared,
// and because a change of a check that a busy Consul agent loses is in the
// catalog after two minutes only.
const patience = 150 * time.Second

// spliced adds to a node's configuration what it does not say itself:
// E2E_SPLICING=auto runs tests with the direct way between workloads of a node,
// E2E_HOPS=auto with connections between applications and the proxy spliced.
func spliced(extra string) string {
	for key, mode := range map[string]string{"splicing": os.Getenv("E2E_SPLICING"), "spliceHops": os.Getenv("E2E_HOPS")} {
		if mode != "" && !strings.Contains(extra, key+":") {
			extra = key + ": " + mode + "\n" + extra
		}
	}
	return extra
}

// unhurried has a node wait for as long as a busy machine takes, where its
// configuration doesn't say for how long: the defaults are seconds.
func unhurried(extra string) (env []string) {
	for key, name := range map[string]string{"connectTimeout:": "DEFAULTS_CONNECT_TIMEOUT", "upgradeTimeout:": "UPGRADE_TIMEOUT"} {
		if !strings.Contains(extra, key) {
			env = append(env, "MESHPROXY_"+name+"="+restartTime.String())
		}
	}
	return env
}

// throughProxy is for tests of what the proxy does for connections between two
// workloads of one node.
const throughProxy = "splicing: off\n"

// lab is a topology with a mesh on it.
type lab struct {
	*testing.T
	net   *testnet.Topology
	nodes map[string]*meshnode.Node
	// installed are the programs of nodes that have one of their own.
	installed map[string]string
	// mesh is the text of the file that all nodes share, a template over
	// lab itself.
	mesh     string
	meshFile string
	caDir    string
}

// newLab makes hosts and a CA. Everything goes with the test.
func newLab(t *testing.T, mesh string, hosts ...string) *lab {
	t.Helper()
	net, err := testnet.New(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := net.Close(); err != nil {
			t.Errorf("close topology: %v", err)
		}
	})
	l := &lab{
		T: t, net: net, nodes: make(map[string]*meshnode.Node), installed: make(map[string]string), mesh: mesh,
		meshFile: filepath.Join(net.Dir(), "mesh.yaml"), caDir: filepath.Join(net.Dir(), "ca"),
	}
	if err := meshnode.InitCA(l.caDir); err != nil {
		t.Fatal(err)
	}
	l.writeMesh(mesh)
	return l
}

// in is the lab for a subtest.
func (l *lab) in(t *testing.T) *lab {
	sub := *l
	sub.T = t
	return &sub
}

// ctx is for one step of a test.
func (l *lab) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	l.Cleanup(cancel)
	return ctx
}

// writeMesh replaces the shared file as an editor does.
func (l *lab) writeMesh(text string) {
	l.Helper()
	tmpl, err := template.New("mesh").Parse(text)
	if err != nil {
		l.Fatal(err)
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, l); err != nil {
		l.Fatal(err)
	}
	l.mesh = text
	next := l.meshFile + ".next"
	if err := os.WriteFile(next, []byte(b.String()), 0o644); err != nil {
		l.Fatal(err)
	}
	if err := os.Rename(next, l.meshFile); err != nil {
		l.Fatal(err)
	}
}

// Cgroup is for templates: the path of a cgroup below a host's, as selectors
// name it.
func (l *lab) Cgroup(host, below string) string {
	return meshnode.CgroupPath(l.net, l.net.Host(host).Namespace, below)
}

// start runs a node on the host; extra is added to its configuration.
func (l *lab) start(host, extra string) *meshnode.Node {
	l.Helper()
	return l.startAs(host, meshnode.Options{Extra: extra})
}

// startAs is start with more to choose.
func (l *lab) startAs(host string, o meshnode.Options) *meshnode.Node {
	l.Helper()
	o.Host, o.CADir = l.net.Host(host), l.caDir
	o.Extra = spliced(o.Extra)
	o.Env = append(unhurried(o.Extra), o.Env...)
	if o.ProxyTimeout == 0 {
		o.ProxyTimeout = restartTime
	}
	if !o.NoMeshFile {
		o.MeshFile = l.meshFile
	}
	program, ok := l.installed[host]
	if !ok {
		program = programs.meshproxy
	}
	o.Program = append(o.Program, program)
	n, err := meshnode.Start(l.ctx(), o)
	if err != nil {
		l.Fatal(err)
	}
	l.nodes[host] = n
	l.Cleanup(func() {
		if strings.Contains(n.Stderr().String(), "WARNING: DATA RACE") {
			l.Errorf("node %s has a data race", host)
		}
		if l.Failed() {
			l.Logf("node %s:\n%s%s", host, n.Stderr().Tail(6000), n.Stdout().Tail(6000))
		}
	})
	return n
}

// place is a host or a container: where a process can run.
type place interface {
	Start(testnet.Command) (*testnet.Process, error)
	Run(context.Context, testnet.Command) ([]byte, error)
}

// serve starts a server in a cgroup and waits until it listens.
func (l *lab) serve(where place, cgroup string, args ...string) *testnet.Process {
	l.Helper()
	return l.serveAs(where, cgroup, 0, args...)
}

func (l *lab) serveAs(where place, cgroup string, uid uint32, args ...string) *testnet.Process {
	l.Helper()
	p, err := where.Start(testnet.Command{
		Name: "serve-" + path.Base(cgroup), Path: programs.workload, Args: append([]string{"serve"}, args...), Cgroup: cgroup, UID: uid,
	})
	if err != nil {
		l.Fatal(err)
	}
	l.ready(p)
	return p
}

func (l *lab) ready(p *testnet.Process) {
	l.Helper()
	_, err := p.Stdout().WaitLine(l.ctx(), func(line string) bool { return strings.Contains(line, `"event":"ready"`) })
	if err != nil {
		l.Fatalf("%s is not ready: %v: %s", p.Name(), err, p.Stderr())
	}
}

// dial makes one connection from a cgroup and returns what came of it.
func (l *lab) dial(where place, cgroup string, args ...string) workload.Dialed {
	l.Helper()
	return l.dialAs(where, cgroup, 0, args...)
}

func (l *lab) dialAs(where place, cgroup string, uid uint32, args ...string) workload.Dialed {
	l.Helper()
	out, err := where.Run(l.ctx(), testnet.Command{
		Name: "dial-" + path.Base(cgroup), Path: programs.workload, Cgroup: cgroup, UID: uid,
		Args: append([]string{"dial-once", "-timeout", clientTimeout}, args...),
	})
	var d workload.Dialed
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, `"event":"dialed"`) {
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				l.Fatalf("dial %v: %v in %q", args, err, line)
			}
			return d
		}
	}
	l.Fatalf("dial %v: %v, said %q", args, err, out)
	return d
}

// eventually waits for a condition.
func (l *lab) eventually(what string, condition func() error) {
	l.Helper()
	l.eventuallyWithin(patience, what, condition)
}

// eventuallyWithin is for what takes much longer than most.
func (l *lab) eventuallyWithin(d time.Duration, what string, condition func() error) {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if err := testnet.Until(ctx, condition); err != nil {
		l.Fatalf("%s: %v", what, err)
	}
}
