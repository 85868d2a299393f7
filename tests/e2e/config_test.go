// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

const exampleDir = "../../configs"

// example runs a node from a file of configs/ as it is: the host gets the
// example's address, and what differs on a machine of a test is said by
// variables and flags.
func (l *lab) example(host, file string, address netip.Addr, flags ...string) *meshnode.Node {
	l.Helper()
	h := l.net.Host(host)
	if err := h.Do(func() error { return addAddress(testnet.WireLink, address) }); err != nil {
		l.Fatal(err)
	}
	config := filepath.Join(h.Dir(), file)
	for _, name := range []string{file, "mesh.yaml"} {
		text, err := os.ReadFile(filepath.Join(exampleDir, name))
		if err != nil {
			l.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.Dir(), name), text, 0o644); err != nil {
			l.Fatal(err)
		}
	}
	env := []string{
		"MESHPROXY_CONFIG=" + config,
		"MESHPROXY_CGROUP_ROOT=" + h.Cgroup(),
		"MESHPROXY_BPF_FS=" + h.BPFFS(),
		"MESHPROXY_STATE_DIR=" + filepath.Join(h.Dir(), "lib"),
		"MESHPROXY_RUN_DIR=" + filepath.Join(h.Dir(), "run"),
		"MESHPROXY_IDENTITY_EMBEDDED_DIR=" + filepath.Join(l.net.Dir(), "example-ca"),
	}
	if _, code := l.commandOn(h, env, "ca", "show"); code != 0 {
		if out, code := l.commandOn(h, env, "ca", "init"); code != 0 {
			l.Fatalf("ca init: %d: %s", code, out)
		}
	}
	p, err := h.Start(testnet.Command{
		Name: "meshproxy", Path: programs.meshproxy, Args: append([]string{"run"}, flags...), Env: env, Cgroup: meshnode.Cgroup,
	})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("node %s:\n%s%s", host, p.Stderr().Tail(4000), p.Stdout().Tail(2000))
		}
	})
	n := &meshnode.Node{Process: p, Admin: client.New(filepath.Join(h.Dir(), "run", "admin.sock"))}
	l.nodes[host] = n
	l.eventually(host+" is ready", func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("ended: %s", p.Stderr().Tail(1000))
		default:
		}
		return l.ready200(h)
	})
	return n
}

// addAddress gives a link of the thread's namespace one more address, in a
// network of its own that all hosts of the wire are in.
func addAddress(link string, a netip.Addr) error {
	dev, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}})
}

// ready200 asks the readiness probe.
func (l *lab) ready200(h *testnet.Host) error {
	code, body, err := l.get(h, "http://127.0.0.1:15021/healthz/ready")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d: %s", code, body)
	}
	return err
}

// commandOn runs a command of the product on a host and returns all that it
// said, and its exit code.
func (l *lab) commandOn(h *testnet.Host, env []string, args ...string) (string, int) {
	l.Helper()
	p, err := h.Start(testnet.Command{Name: "cli-" + args[0], Path: programs.meshproxy, Args: args, Env: env, Cgroup: meshnode.Cgroup})
	if err != nil {
		l.Fatal(err)
	}
	var exit *exec.ExitError
	if err := p.Wait(l.ctx()); err != nil && !errors.As(err, &exit) {
		l.Fatalf("%v: %v", args, err)
	}
	return p.Stdout().String() + p.Stderr().String(), p.ExitCode()
}

// TestExampleOfTwoNodes runs configs/node-a.yaml, node-b.yaml and mesh.yaml.
func TestExampleOfTwoNodes(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	// Flags win over variables, which win over the file.
	l.example("a", "node-a.yaml", netip.MustParseAddr("192.0.2.1"), "--log.level", "debug", "--log.access=json", "--log.accessEntries", "all")
	l.example("b", "node-b.yaml", netip.MustParseAddr("192.0.2.2"))
	web := l.serve(a, "system.slice/web.service", "-name", "web-a", "-http", "192.0.2.1:8080")
	l.serve(b, "system.slice/web.service", "-name", "web-b", "-http", "192.0.2.2:8080")
	l.serve(b, `system.slice/system-postgresql.slice/postgresql@16-main.service`, "-name", "db", "-tcp", "127.0.0.1:5432")

	shop := l.call(a, "system.slice/shop.service", "-url", "http://web/", "-fresh", "-rate", "50")
	l.awaitCall(shop, 0, "answer of the endpoint on the same node", servedBy("web-a"))
	if got := l.works(a, "system.slice/web.service", "127.0.0.1:5432"); got != "db" {
		t.Errorf("explicit upstream on a: answered by %q", got)
	}
	if got := l.works(b, "system.slice/web.service", "127.0.0.1:5432"); got != "db" {
		t.Errorf("explicit upstream on b: answered by %q", got)
	}
	l.fails(a, "system.slice/shop.service", "db:5432", "ECONNRESET at read")
	if err := web.Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	l.awaitCall(shop, mark(shop), "answer of the endpoint on the other node", servedBy("web-b"))
	for _, host := range []string{"a", "b"} {
		if st := l.status(host); st.State != "ready" {
			t.Errorf("node %s is %s: %v", host, st.State, st.Problems)
		}
	}
}

func servedBy(name string) func(string) bool {
	return func(line string) bool { s, ok := stats(line); return ok && s.Servers[name] > 0 }
}

func TestExampleMinimal(t *testing.T) {
	l := newLab(t, "nodes: []", "a", "b")
	a := l.net.Host("a")
	l.example("a", "minimal.yaml", netip.MustParseAddr("192.0.2.10"))
	l.serve(a, "system.slice/web.service", "-name", "web", "-http", "192.0.2.10:8080")
	l.call(a, "system.slice/shop.service", "-url", "http://web.mesh.internal/", "-fresh")
	d := l.dial(a, "system.slice/web.service", "-address", "web:80", "-send", "hello")
	if d.OK {
		t.Error("only shop may call web, and web called itself")
	}
}

// TestExamplesAreValid asks the product itself.
func TestExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(exampleDir, "*.yaml"))
	if err != nil || len(files) < 5 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	for _, file := range files {
		if filepath.Base(file) == "mesh.yaml" {
			continue // a part of the two nodes' configuration
		}
		out, err := exec.Command(programs.meshproxy, "config", "validate", file).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", file, err, out)
		}
	}
}

// TestInvalidConfiguration: nothing starts, and the message is all that is
// needed to put it right.
func TestInvalidConfiguration(t *testing.T) {
	const good = "node: {name: a, address: 10.77.0.1}\n"
	for _, tc := range []struct {
		name, text string
		args, env  []string
		want       []string // where, key, found, allowed
	}{
		{"unknown key", good + "nodee: 1\n", nil, nil, []string{"bad.yaml:2", "nodee", "unknown", "node"}},
		{"unknown key below", "node:\n  name: a\n  adress: 10.77.0.1\n", nil, nil, []string{"bad.yaml:3", `node: unknown key "adress"`, "name, address, addresses"}},
		{"wrong type", good + "drainTimeout: soon\n", nil, nil, []string{"bad.yaml:2", "drainTimeout", `"soon"`, "a duration with a unit"}},
		{"list for a scalar", good + "stateDir: [a, b]\n", nil, nil, []string{"bad.yaml:2", "stateDir", "found a list", "a string"}},
		{"duplicate", good + "node: {name: b}\n", nil, nil, []string{"bad.yaml:2", "node", "twice"}},
		{"not one of", good + "defaults: {inbound: open}\n", nil, nil, []string{"bad.yaml:2", "defaults.inbound", `"open"`, "strict, permissive"}},
		{"port out of range", good + "listeners: {outbound: 70000}\n", nil, nil, []string{"bad.yaml:2", "listeners.outbound", "the number 70000", "65535"}},
		{"impossible combination", good + "listeners: {outbound: 15008}\n", nil, nil, []string{"bad.yaml", "listeners.", "15008"}},
		{"files without files", good + "identity: {provider: files}\n", nil, nil, []string{"bad.yaml:2", "identity."}},
		{"mesh section", good + "services:\n  - {name: web, ports: [{port: 0}], endpoints: []}\n", nil, nil, []string{"bad.yaml:3", "services[0].ports[0].port", "the number 0", "65535"}},
		{"duplicate service", good + "services:\n  - {name: web, ports: [{port: 80}]}\n  - {name: web, ports: [{port: 80}]}\n", nil, nil, []string{"bad.yaml:4", "services[1]", "web"}},
		{"duplicate upstream", good + "workloads:\n  - name: w\n    match: [{unit: w.service}]\n    upstreams: [{listen: '127.0.0.1:1', service: web}, {listen: '127.0.0.1:1', service: db}]\n", nil, nil, []string{"bad.yaml:5", "upstreams[1]", "127.0.0.1:1"}},
		{"unknown variable", good, nil, []string{"MESHPROXY_NODE_NAEM=x"}, []string{"$MESHPROXY_NODE_NAEM", "unknown variable", "MESHPROXY_NODE_NAME"}},
		{"bad variable", good, nil, []string{"MESHPROXY_DRAIN_TIMEOUT=x"}, []string{"$MESHPROXY_DRAIN_TIMEOUT", `"x"`, "a duration with a unit"}},
		{"bad flag", good, []string{"--log.level", "loud"}, nil, []string{"--log.level", `"loud"`, "debug, info, warn"}},
		{"unknown flag", good, []string{"--log.levl", "info"}, nil, []string{"--log.levl"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bad.yaml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, command := range [][]string{{"run"}, {"config", "validate"}} {
				cmd := exec.Command(programs.meshproxy, append(append(command, "--config", file), tc.args...)...)
				cmd.Env = append(os.Environ(), tc.env...)
				out, _ := cmd.CombinedOutput()
				if code := cmd.ProcessState.ExitCode(); code != 2 {
					t.Errorf("%v: exit code %d, want 2", command, code)
				}
				for _, part := range tc.want {
					if !strings.Contains(string(out), part) {
						t.Errorf("%v: %q is not in %s", command, part, out)
					}
				}
			}
		})
	}
}

// reloadMesh has a service that a reload moves and one that stays.
const reloadMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: far, node: b, match: [{cgroup: "{{.Cgroup "b" "far"}}"}]}
services:
  - {name: far, ports: [{port: 80}], endpoints: [{address: 10.77.0.2, port: 8080, node: b, workload: far}]}
`

// TestReload: a configuration that is valid is put in force, one that isn't
// changes nothing, and connections don't notice either.
func TestReload(t *testing.T) {
	l := newLab(t, reloadMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	n := l.start("a", "log: {level: info}\n")
	l.start("b", "")
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080", "-tcp", "10.77.0.2:9000")
	kept := l.call(a, "client", "-tcp", "far:80", "-rate", "200")
	fresh := l.call(a, "client", "-tcp", "far:80", "-rate", "50", "-fresh")
	good, err := os.ReadFile(n.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(text string) {
		t.Helper()
		if err := os.WriteFile(n.ConfigPath()+".next", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(n.ConfigPath()+".next", n.ConfigPath()); err != nil {
			t.Fatal(err)
		}
	}
	level := func() string {
		t.Helper()
		v, err := n.Admin.LogLevel(l.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return v.Level
	}

	t.Run("changed file", func(t *testing.T) {
		l := l.in(t)
		rewrite(strings.Replace(string(good), "level: info", "level: warn", 1))
		l.eventually("level warn", func() error { return want(level(), "warn") })
	})
	t.Run("SIGHUP", func(t *testing.T) {
		l := l.in(t)
		before := l.status("a").Config.LoadedAt
		if err := n.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		l.eventually("the configuration is read again", func() error {
			if !l.status("a").Config.LoadedAt.After(before) {
				return errors.New("not yet")
			}
			return nil
		})
	})
	t.Run("not valid", func(t *testing.T) {
		l := l.in(t)
		rewrite(strings.Replace(string(good), "level: info", "level: loud", 1) + "dns: {ttl: 3s}\n")
		l.eventually("status says so", func() error {
			if text := l.status("a").Config.LastError; !containsAll(text, []string{"log.level", "loud", "debug, info"}) {
				return fmt.Errorf("last error %q", text)
			}
			return nil
		})
		if level() != "warn" {
			t.Errorf("level %s, want that of before", level())
		}
		if st := l.status("a"); st.State != "degraded" {
			t.Errorf("state %s, want degraded", st.State)
		}
		out, code := l.commandOn(a, nil, "reload", "--config", n.ConfigPath(), "--socket", n.Socket())
		if code == 0 || !strings.Contains(out, "loud") {
			t.Errorf("reload: exit code %d: %s", code, out)
		}
	})
	t.Run("not valid in the mesh's part", func(t *testing.T) {
		l := l.in(t)
		rewrite(strings.Replace(string(good), "level: info", "level: error", 1) + "policies: [{name: p, action: perhaps}]\n")
		l.eventually("status says so", func() error {
			if text := l.status("a").Config.LastError; !containsAll(text, []string{"policies[0].action", "perhaps", "allow"}) {
				return fmt.Errorf("last error %q", text)
			}
			return nil
		})
		if level() != "warn" {
			t.Errorf("level %s, want that of before", level())
		}
	})
	t.Run("a key that needs a restart", func(t *testing.T) {
		l := l.in(t)
		for _, text := range []string{"drainTimeout: 7s\n", "drainTimeout: 8s\n"} {
			rewrite(string(good) + "listeners: {inboundHBONE: 16008}\n" + text)
			l.eventually("status says so", func() error {
				st := l.status("a")
				return want(fmt.Sprint(st.Config.RestartNeeded, st.Config.LastError), "[listeners.inboundHBONE]")
			})
		}
		for _, ln := range l.status("a").Listeners {
			if strings.Contains(ln.Address, "16008") {
				t.Errorf("status shows a listener that does not exist: %+v", ln)
			}
		}
		rewrite(string(good))
		l.eventually("no restart is needed any more", func() error {
			return want(fmt.Sprint(l.status("a").Config.RestartNeeded), "[]")
		})
	})
	t.Run("mesh", func(t *testing.T) {
		l := l.in(t)
		l.writeMesh(reloadMesh + "  - {name: new, ports: [{port: 90}], endpoints: [{address: 10.77.0.2, port: 9000, node: b, workload: far}]}\n")
		l.works(a, "client", "new:90")
		l.writeMesh(reloadMesh + "  - {name: worse, ports: [{prt: 90}]}\n")
		l.eventually("status says so", func() error {
			if text := fmt.Sprint(l.status("a").Problems); !containsAll(text, []string{"mesh.yaml:", "prt"}) {
				return fmt.Errorf("problems %s", text)
			}
			return nil
		})
		if d := l.dial(a, "client", "-address", "new:90", "-send", "hello"); !d.OK {
			t.Errorf("what was in force before is not any more: %s at %s", d.Error, d.Stage)
		}
		l.writeMesh(reloadMesh)
		l.eventually("service is gone", func() error { return want(l.dial(a, "client", "-address", "new.mesh.internal:90").Error, "NXDOMAIN") })
		l.eventually("node is ready", func() error { return want(string(l.status("a").State), "ready") })
	})
	for _, p := range []*testnet.Process{kept, fresh} {
		l.awaitCall(p, mark(p), "another call", succeeded)
		l.undisturbed(p, 0)
	}
}

func want(got, want string) error {
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// get makes an HTTP request from a host's namespace.
func (l *lab) get(h *testnet.Host, url string) (code int, body string, err error) {
	transport := &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true}
	return fetch(l.ctx(), transport, url)
}

func fetch(ctx context.Context, transport *http.Transport, url string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := io.Copy(&b, resp.Body); err != nil {
		return 0, "", err
	}
	return resp.StatusCode, b.String(), nil
}
