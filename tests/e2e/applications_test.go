// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

const applicationsMesh = `
authorization: {default: deny}
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: cli, node: a, match: [{cgroup: "{{.Cgroup "a" "cli"}}"}]}
  - {name: postgres, node: a, match: [{cgroup: "{{.Cgroup "a" "postgres"}}"}]}
  - {name: redis, node: a, match: [{cgroup: "{{.Cgroup "a" "redis"}}"}]}
  - {name: nginx, node: a, match: [{cgroup: "{{.Cgroup "a" "nginx"}}"}]}
services:
  - {name: postgres, ports: [{port: 5432}], endpoints: [{address: 10.77.0.1, port: 5432, node: a, workload: postgres}]}
  - {name: redis, ports: [{port: 6379}], endpoints: [{address: 10.77.0.1, port: 6379, node: a, workload: redis}]}
  - {name: nginx, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: nginx}]}
policies:
  - name: clients-may
    action: allow
    from: [{identity: "spiffe://mesh.internal/ns/default/sa/client"}, {identity: "spiffe://mesh.internal/ns/default/sa/cli"}]
`

// TestApplications: PostgreSQL, Redis and nginx as the distribution has them,
// with their own clients and benchmarks, say the same to each other when they
// are spliced.
func TestApplications(t *testing.T) {
	l := newLab(t, applicationsMesh, "a")
	l.start("a", "splicing: auto")
	dir, err := os.MkdirTemp("", "meshproxy-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []struct {
		name string
		run  func(*applications, *testing.T)
	}{{"postgres", (*applications).postgres}, {"redis", (*applications).redis}, {"nginx", (*applications).nginx}} {
		t.Run(a.name, func(t *testing.T) {
			a.run(&applications{lab: l.in(t), dir: filepath.Join(dir, a.name), name: a.name}, t)
		})
	}
}

// applications is what one of them needs.
type applications struct {
	*lab
	dir  string
	name string
}

// serve starts the server, as an ordinary user with a directory of its own.
func (a *applications) serve(port uint16, path string, args ...string) {
	a.Helper()
	p, err := a.net.Host("a").Start(testnet.Command{
		Name: a.name, Path: path, Args: args, Dir: a.dir, Cgroup: a.name, UID: a.uid(), GID: a.uid(),
	})
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = p.Kill(); <-p.Done() })
	addr := a.net.Host("a").Addr4()
	if err := a.net.Host("a").WaitListen(a.ctx(), netip.AddrPortFrom(addr, port)); err != nil {
		a.Fatalf("%v: %s%s", err, p.Stdout().Tail(500), p.Stderr().Tail(500))
	}
}

func (a *applications) uid() uint32 {
	a.Helper()
	u, err := user.Lookup("nobody")
	if err != nil {
		a.Fatal(err)
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		a.Fatal(err)
	}
	return uint32(id)
}

func (a *applications) makeDir() {
	a.Helper()
	if err := os.Mkdir(a.dir, 0o700); err != nil {
		a.Fatal(err)
	}
	if err := os.Chown(a.dir, int(a.uid()), int(a.uid())); err != nil {
		a.Fatal(err)
	}
}

// program finds one of the distribution's, some of which only root's path has.
func (a *applications) program(name string) string {
	a.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	for _, path := range append(found, "/usr/bin/"+name, "/usr/sbin/"+name) {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	a.Fatalf("%s is not installed: tests/deps.sh does", name)
	return ""
}

// client runs a client to its end, and returns what it says.
func (a *applications) client(name string, args ...string) []byte {
	a.Helper()
	return a.clientIn("client", name, args...)
}

func (a *applications) clientIn(cgroup, name string, args ...string) []byte {
	a.Helper()
	out, err := a.net.Host("a").Run(a.ctx(), testnet.Command{Name: name, Path: a.program(name), Args: args, Cgroup: cgroup, Dir: "/"})
	if err != nil {
		a.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// spliced runs something and returns what went by the kernel's way meanwhile.
func (a *applications) spliced(what func()) {
	a.Helper()
	before := a.splice("a")
	what()
	after := a.splice("a")
	if after.Spliced == before.Spliced || after.Redirected == before.Redirected {
		a.Errorf("nothing was spliced: before %+v, after %+v", before, after)
	}
	a.Logf("%s", spliceDifference(&before, &after))
}

func spliceDifference(a, b *api.Splice) string {
	return fmt.Sprintf("%d connections, %d spliced, %d bytes, %d redirected; fallbacks %v", b.Opened-a.Opened, b.Spliced-a.Spliced,
		b.Sent+b.Received-a.Sent-a.Received, b.Redirected-a.Redirected, b.Fallbacks)
}

func (a *applications) postgres(t *testing.T) {
	a.makeDir()
	data := filepath.Join(a.dir, "data")
	if out, err := a.net.Host("a").Run(a.ctx(), testnet.Command{
		Name: "initdb", Path: a.program("initdb"), Dir: a.dir, Cgroup: "setup", UID: a.uid(), GID: a.uid(),
		Args: []string{"--no-sync", "--username=postgres", "--auth=trust", "--locale=C", "--encoding=UTF8", "-D", data},
	}); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all 10.77.0.1/32 trust\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a.serve(5432, a.program("postgres"), "-D", data, "-c", "listen_addresses=10.77.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
	target := []string{"-h", a.virtualIP("a", "postgres"), "-U", "postgres"}
	psql := func(query string) string {
		return strings.TrimSpace(string(a.client("psql", append(target, "-Atc", query, "postgres")...)))
	}
	a.eventually("a first answer", func() error {
		_, err := a.net.Host("a").Run(a.ctx(), testnet.Command{
			Name: "psql", Path: a.program("psql"), Cgroup: "client", Dir: "/", Args: append(target, "-Atc", "SELECT 1", "postgres"),
		})
		return err
	})
	const clients, each = 4, 100
	a.spliced(func() {
		a.client("pgbench", append(target, "-i", "-q", "postgres")...)
		out := a.client("pgbench", append(target, "-c", strconv.Itoa(clients), "-j", "2", "-t", strconv.Itoa(each), "postgres")...)
		if !bytes.Contains(out, fmt.Appendf(nil, "%d/%d", clients*each, clients*each)) {
			t.Errorf("pgbench: %s", out)
		}
		// Each transaction adds the same to an account, a teller, a branch, and
		// the history.
		const sums = "SELECT count(*), sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts), " +
			"sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history"
		if got, want := psql(sums), fmt.Sprintf("%d|t|t", clients*each); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		const rows = 20_000
		file := filepath.Join(filepath.Dir(a.dir), "copied")
		a.client("psql", append(target, "-o", file, "-Atc", fmt.Sprintf("COPY (SELECT i, repeat('x', 900) FROM generate_series(1, %d) i) TO STDOUT", rows), "postgres")...)
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		for i := range rows {
			fmt.Fprintf(&want, "%d\t%s\n", i+1, strings.Repeat("x", 900))
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("%d bytes copied, want %d", len(got), want.Len())
		}
	})
}

func (a *applications) redis(t *testing.T) {
	a.makeDir()
	a.serve(6379, a.program("redis-server"), "--bind", "10.77.0.1", "--port", "6379", "--save", "", "--protected-mode", "no", "--dir", a.dir)
	target := []string{"-h", a.virtualIP("a", "redis")}
	cli := func(args ...string) string {
		return strings.TrimSpace(string(a.clientIn("cli", "redis-cli", append(target, args...)...)))
	}
	if got := cli("PING"); got != "PONG" {
		t.Fatalf("PING: %s", got)
	}
	// Its library connects without blocking and blocks from then on; it would see
	// EAGAIN on a spliced connection.
	a.eventually("how redis-cli reads is known", func() error {
		if s := a.splice("a"); !slices.ContainsFunc(s.Unfit, func(r api.UnfitReader) bool { return r.Workload == "cli" && r.Service == "redis" }) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	before := a.splice("a")
	if got := cli("PING"); got != "PONG" {
		t.Fatalf("PING: %s", got)
	}
	if s := a.splice("a"); s.Opened == before.Opened || s.Spliced != before.Spliced {
		t.Errorf("redis-cli: before %+v, after %+v", before, s)
	}
	// So does one of the benchmark's connections, with which it asks for the server's
	// configuration; the others don't block. The first benchmark shows that.
	a.client("redis-benchmark", append(target, "-n", "100", "-c", "5", "-t", "ping", "-q")...)
	loads := [][]string{
		{"-n", "20000", "-c", "20", "-d", "64", "-t", "ping,set,get,incr,lpush,lrange_300,mset"},
		{"-n", "5000", "-c", "8", "-P", "16", "-d", "1000", "-t", "set,get"},
		{"-n", "300", "-c", "8", "-d", "300000", "-t", "set,get"},
	}
	for _, load := range loads {
		a.spliced(func() { a.benchmark(append(target, load...)) })
	}
	if got := cli("STRLEN", "key:__rand_int__"); got != "300000" {
		t.Errorf("the value has %s bytes", got)
	}
	if got := cli("GET", "counter:__rand_int__"); got != "20000" {
		t.Errorf("counted %s", got)
	}
	a.mixed(target)
}

func (a *applications) benchmark(args []string) {
	a.Helper()
	out := a.client("redis-benchmark", append(args, "-q")...)
	if !bytes.Contains(out, []byte("requests per second")) || bytes.Contains(bytes.ToLower(out), []byte("error")) {
		a.Errorf("redis-benchmark %v: %s", args, out)
	}
}

// mixed has clients that block, of the same workload, come and go beside the
// benchmark's.
func (a *applications) mixed(target []string) {
	a.Helper()
	over, asked := make(chan struct{}), make(chan int)
	cli := a.program("redis-cli")
	go func() {
		n := 0
		defer func() { asked <- n }()
		for ; ; n++ {
			select {
			case <-over:
				return
			default:
			}
			value := strings.Repeat("v", 1+n*977%100_000)
			for _, ask := range []struct{ args, want string }{{"SET blocks " + value, "OK"}, {"GET blocks", value}} {
				out, err := a.net.Host("a").Run(a.ctx(), testnet.Command{
					Name: "redis-cli", Path: cli, Args: append(slices.Clone(target), strings.Fields(ask.args)...), Cgroup: "client", Dir: "/",
				})
				if got := strings.TrimSpace(string(out)); err != nil || got != ask.want {
					a.Errorf("redis-cli beside the benchmark: %.100s, %v", got, err)
					return
				}
			}
		}
	}()
	a.spliced(func() { a.benchmark(append(target, "-n", "50000", "-c", "50", "-d", "64", "-t", "set,get,incr,lpush")) })
	close(over)
	if n := <-asked; n == 0 {
		a.Error("nobody asked meanwhile")
	}
	if s := a.splice("a"); slices.ContainsFunc(s.Unfit, func(r api.UnfitReader) bool { return r.Workload == "client" }) {
		a.Errorf("%+v", s.Unfit)
	}
}

const nginxConfig = `daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  server { listen 10.77.0.1:8080; root files; }
}
`

func (a *applications) nginx(t *testing.T) {
	a.makeDir()
	files := filepath.Join(a.dir, "files")
	content := make([]byte, 3<<20)
	for i := range content {
		content[i] = byte(i * 131 >> 7)
	}
	for name, text := range map[string][]byte{
		filepath.Join(a.dir, "nginx.conf"): []byte(nginxConfig),
		filepath.Join(files, "large"):      content, filepath.Join(files, "small"): content[:500],
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("chown", "-R", strconv.Itoa(int(a.uid())), a.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	a.serve(8080, a.program("nginx"), "-p", a.dir, "-c", "nginx.conf")
	url := "http://" + a.virtualIP("a", "nginx")
	a.client("ab", "-n", "1", url+"/small") // shows the server's socket
	a.spliced(func() {
		for _, tc := range []struct {
			args  []string
			bytes int
		}{
			{[]string{"-n", "5000", "-c", "16", "-k", url + "/small"}, 5000 * 500},
			{[]string{"-n", "500", "-c", "8", url + "/small"}, 500 * 500},
			{[]string{"-n", "100", "-c", "4", "-k", url + "/large"}, 100 * len(content)},
		} {
			out := string(a.client("ab", append([]string{"-q", "-s", "120"}, tc.args...)...))
			if !strings.Contains(out, "Failed requests:        0") || strings.Contains(out, "Non-2xx") {
				t.Errorf("ab %v: %s", tc.args, out)
			}
			if n := transferred.FindStringSubmatch(out); tc.bytes > 0 && (n == nil || n[1] != strconv.Itoa(tc.bytes)) {
				t.Errorf("ab %v: %s bytes, want %d", tc.args, n, tc.bytes)
			}
		}
	})
}

var transferred = regexp.MustCompile(`HTML transferred: +([0-9]+)`)
