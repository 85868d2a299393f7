// SPDX-License-Identifier: Apache-2.0

package testnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary play a process of a topology.
const roleEnv = "TESTNET_ROLE"

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleEnv); role {
	case "":
		goleak.VerifyTestMain(m)
	default:
		os.Exit(play(role))
	}
}

// play is what the test binary does inside of a topology.
func play(role string) int {
	switch role {
	case "report":
		group, _ := os.ReadFile("/proc/self/cgroup")
		resolver, _ := os.ReadFile("/etc/resolv.conf")
		fmt.Printf("uid=%d env=%s\n%s%s", os.Getuid(), os.Getenv("TESTNET_VALUE"), group, resolver)
		fmt.Fprintln(os.Stderr, "to stderr")
	case "wait":
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin)
		select {}
	case "lookup":
		addrs, err := net.DefaultResolver.LookupHost(context.Background(), "some.name.test.")
		fmt.Println(addrs, err)
	case "owner": // makes a topology and never closes it
		topology, err := New("a", "b")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		p, err := topology.Host("a").Start(Command{Name: "orphan", Path: Self, Env: []string{roleEnv + "=wait"}, Cgroup: "orphan"})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Printf("topology %s pid %d\n", topology.Name(), p.Pid())
		_, _ = io.Copy(io.Discard, os.Stdin)
		unix.Kill(os.Getpid(), unix.SIGKILL)
	case "fail":
		fmt.Fprintln(os.Stderr, "on purpose")
		return 7
	}
	return 0
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newTopology(t *testing.T, hosts ...string) *Topology {
	t.Helper()
	topology, err := New(hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := topology.Close(); err != nil {
			t.Error(err)
		}
	})
	return topology
}

// echo answers every line with the address that the line came from.
func echo(t *testing.T, n *Namespace, addr string) {
	t.Helper()
	l, err := n.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			fmt.Fprintf(c, "%s %s", c.RemoteAddr(), line)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _, _ = l.Close(), <-done })
}

// say sends a line and returns the answer.
func say(t *testing.T, n *Namespace, to netip.AddrPort, line string) string {
	t.Helper()
	c, err := n.DialContext(testContext(t), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, line)
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(answer))
}

func TestHostsAndContainersReachEachOther(t *testing.T) {
	for _, hosts := range [][]string{{"a", "b"}, {"a", "b", "c"}} {
		t.Run(fmt.Sprintf("%d hosts", len(hosts)), func(t *testing.T) {
			topology := newTopology(t, hosts...)
			a, b := topology.Host("a"), topology.Host("b")
			c, err := a.Container("box")
			if err != nil {
				t.Fatal(err)
			}
			d, err := b.Container("crate")
			if err != nil {
				t.Fatal(err)
			}
			type place struct {
				*Namespace
				addrs []netip.Addr
			}
			places := []place{
				{a.Namespace, []netip.Addr{a.Addr4(), a.Addr6()}},
				{b.Namespace, []netip.Addr{b.Addr4(), b.Addr6()}},
				{c.Namespace, []netip.Addr{c.Addr4(), c.Addr6()}},
				{d.Namespace, []netip.Addr{d.Addr4(), d.Addr6()}},
			}
			for _, p := range places {
				echo(t, p.Namespace, ":7000")
			}
			for _, from := range places {
				for _, to := range places {
					for i, addr := range to.addrs {
						got := say(t, from.Namespace, netip.AddrPortFrom(addr, 7000), "hello")
						seen, rest, _ := strings.Cut(got, " ")
						if rest != "hello" {
							t.Errorf("%s to %s: answer %q", from.Name(), addr, got)
						}
						// A container reached from its own host sees the
						// gateway's address.
						if from.Name() == "a" && to.Name() == "box" || from.Name() == "b" && to.Name() == "crate" {
							continue
						}
						if p, err := netip.ParseAddrPort(seen); err != nil || p.Addr().Unmap() != from.addrs[i] {
							t.Errorf("%s to %s: seen as %s, want %s", from.Name(), addr, seen, from.addrs[i])
						}
					}
				}
			}
		})
	}
}

func TestTwoTopologiesAtOnce(t *testing.T) {
	one, two := newTopology(t, "a", "b"), newTopology(t, "a", "b")
	for i, topology := range []*Topology{one, two} {
		echo(t, topology.Host("b").Namespace, ":7000")
		got := say(t, topology.Host("a").Namespace, netip.AddrPortFrom(topology.Host("b").Addr4(), 7000), "x")
		if !strings.HasPrefix(got, "10.77.0.1:") {
			t.Errorf("topology %d: answer %q", i, got)
		}
	}
	if one.Name() == two.Name() || one.Cgroup() == two.Cgroup() {
		t.Errorf("names collide: %s, %s", one.Name(), two.Name())
	}
}

func TestProcessIsWhereItShouldBe(t *testing.T) {
	topology := newTopology(t, "a", "b")
	a := topology.Host("a")
	if err := a.SetResolver("127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	out, err := a.Run(testContext(t), Command{
		Name: "report", Path: Self, Cgroup: "web.service", UID: 4242, GID: 4242,
		Env: []string{roleEnv + "=report", "TESTNET_VALUE=given"},
	})
	if err != nil {
		t.Fatal(err)
	}
	group := strings.TrimPrefix(a.Cgroup("web.service"), topology.CgroupMount())
	for _, want := range []string{"uid=4242 env=given", "0::" + group + "\n", "nameserver 127.0.0.1\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	log, err := os.ReadFile(filepath.Join(a.Dir(), "log", "report.log"))
	if err != nil || !strings.Contains(string(log), "to stderr") || !strings.Contains(string(log), "uid=4242") {
		t.Errorf("log is %q, %v", log, err)
	}
}

func TestResolverIsTheHostsOwn(t *testing.T) {
	topology := newTopology(t, "a", "b")
	a := topology.Host("a")
	if err := a.SetResolver("10.77.0.2"); err != nil {
		t.Fatal(err)
	}
	capture, err := a.StartCapture(WireLink, "\x04some\x04name\x04test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Run(testContext(t), Command{Name: "lookup", Path: Self, Env: []string{roleEnv + "=lookup"}}); err != nil {
		t.Fatal(err)
	}
	if err := capture.Sync(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if capture.Contains("\x04some\x04name\x04test") == 0 {
		t.Error("no query was sent to the name server of resolv.conf")
	}
}

func TestExitStatus(t *testing.T) {
	topology := newTopology(t, "a", "b")
	p, err := topology.Host("a").Start(Command{Name: "fail", Path: Self, Env: []string{roleEnv + "=fail"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(testContext(t)); err == nil || p.ExitCode() != 7 {
		t.Errorf("wait: %v, exit status %d", err, p.ExitCode())
	}
	if _, err := p.Stderr().WaitString(testContext(t), "on purpose"); err != nil {
		t.Error(err)
	}
	if _, err := p.Stdout().WaitString(testContext(t), "never"); !errors.Is(err, ErrEnded) {
		t.Errorf("wait for a line that never comes: %v", err)
	}
}

func TestWaitListen(t *testing.T) {
	topology := newTopology(t, "a", "b")
	b := topology.Host("b")
	echo(t, b.Namespace, "10.77.0.2:7001")
	echo(t, b.Namespace, "[::]:7002")
	for _, addr := range []string{"10.77.0.2:7001", "10.77.0.2:7002", "[fd00:77::2]:7002"} {
		if err := b.WaitListen(testContext(t), netip.MustParseAddrPort(addr)); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := b.WaitListen(ctx, netip.MustParseAddrPort("127.0.0.1:7001")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for an address that isn't listened on: %v", err)
	}
}

func TestCapture(t *testing.T) {
	topology := newTopology(t, "a", "b")
	a, b := topology.Host("a"), topology.Host("b")
	capture, err := b.StartCapture(WireLink, "needle", "absent")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, b.Namespace, ":7000")
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		say(t, a.Namespace, netip.AddrPortFrom(to, 7000), "a needle in it")
	}
	// A marker that two packets carry.
	c, err := a.DialContext(testContext(t), "tcp", "10.77.0.2:7000")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"nee", "dle\n"} {
		if _, err := io.WriteString(c, part); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = io.ReadAll(c)
	_ = c.Close()
	if err := capture.Sync(testContext(t)); err != nil {
		t.Fatal(err)
	}
	// Three questions and three answers.
	if n := capture.Contains("needle"); n != 6 {
		t.Errorf("needle seen %d times, want 6", n)
	}
	if n := capture.Contains("absent"); n != 0 {
		t.Errorf("absent marker seen %d times", n)
	}
	if packets, bytes, dropped := capture.Totals(); packets == 0 || bytes == 0 || dropped != 0 {
		t.Errorf("totals: %d packets, %d bytes, %d dropped", packets, bytes, dropped)
	}
	to := capture.Flows(func(f Flow) bool { return f.Protocol == 6 && f.Destination.Port() == 7000 })
	if len(to) != 3 {
		t.Errorf("%d flows to port 7000, want 3", len(to))
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	topology := newTopology(t, "a", "b")
	p, err := topology.Host("a").Start(Command{Name: "wait", Path: Self, Env: []string{roleEnv + "=wait"}, Cgroup: "deep/er"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdout().WaitString(testContext(t), "ready"); err != nil {
		t.Fatal(err)
	}
	if err := topology.Close(); err != nil {
		t.Fatal(err)
	}
	assertGone(t, topology.Name(), p.Pid())
	if err := topology.Host("a").Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("work in a closed namespace: %v", err)
	}
}

func TestCrashedOwnerIsSweptUp(t *testing.T) {
	topology := newTopology(t, "host") // a process to be the owner runs here
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	crashed, err := topology.Host("host").Start(Command{Name: "owner", Path: Self, Env: []string{roleEnv + "=owner"}, Stdin: r})
	_ = r.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := crashed.Stdout().WaitString(testContext(t), "topology")
	if err != nil {
		t.Fatalf("%v: %s", err, crashed.Stderr())
	}
	var name string
	var orphan int
	if _, err := fmt.Sscanf(line, "topology %s pid %d", &name, &orphan); err != nil {
		t.Fatal(err)
	}
	// While it lives it is left alone.
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if unix.Kill(orphan, 0) != nil {
		t.Error("a topology in use was swept up")
	}
	_ = w.Close() // it kills itself
	if err := crashed.Wait(testContext(t)); err == nil {
		t.Error("the owner ended without a signal")
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	assertGone(t, name, orphan)
}

func assertGone(t *testing.T, name string, pid int) {
	t.Helper()
	root, err := cgroup2Mount()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(stateRoot, name), filepath.Join(root, cgroupPrefix+name)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	mounts, err := mountPoints()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.Contains(m.point, name) {
			t.Errorf("mount %s is left", m.point)
		}
	}
	if _, err := startTime(pid); err == nil {
		t.Errorf("process %d is left", pid)
	}
}

func TestCPUTime(t *testing.T) {
	topology := newTopology(t, "a", "b")
	a := topology.Host("a")
	if _, err := a.Run(testContext(t), Command{Name: "report", Path: Self, Cgroup: "x", Env: []string{roleEnv + "=report"}}); err != nil {
		t.Fatal(err)
	}
	used, err := CPUTime(a.Cgroup("x"))
	if err != nil || used <= 0 {
		t.Errorf("cpu time %v, %v", used, err)
	}
}

func TestUnplug(t *testing.T) {
	topology := newTopology(t, "a", "b")
	a, b := topology.Host("a"), topology.Host("b")
	c, err := b.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	echo(t, b.Namespace, ":7000")
	echo(t, c.Namespace, ":7000")
	targets := []netip.Addr{b.Addr4(), b.Addr6(), c.Addr4(), c.Addr6()}
	for _, unplugged := range []*Host{a, b} {
		if err := unplugged.SetLink(WireLink, false); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if conn, err := a.DialContext(ctx, "tcp", netip.AddrPortFrom(b.Addr4(), 7000).String()); err == nil {
			t.Errorf("%s is unplugged and answers", unplugged.Name())
			_ = conn.Close()
		}
		cancel()
		if err := unplugged.SetLink(WireLink, true); err != nil {
			t.Fatal(err)
		}
		for _, to := range targets {
			if got := say(t, a.Namespace, netip.AddrPortFrom(to, 7000), "again"); !strings.HasSuffix(got, "again") {
				t.Errorf("%s after plugging in again: %q", to, got)
			}
		}
	}
}
