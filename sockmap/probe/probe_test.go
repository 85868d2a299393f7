// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// onThread runs fn on a thread that is thrown away afterwards, with all that
// fn did to its namespaces and capabilities.
func onThread(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	// The first thread can't be thrown away: hold it, if we get it.
	var start func()
	start = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			inner := make(chan struct{})
			go func() { defer close(inner); start() }()
			<-inner
			runtime.UnlockOSThread()
			return
		}
		fn()
	}
	go func() { defer close(done); start() }()
	<-done
}

// mountBPFFS mounts a bpf file system that only this thread sees.
func mountBPFFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("bpf", dir, "bpf", 0, ""),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	return dir
}

// TestBPFFSNotMounted: where the kernel has a place for it, run mounts it.
func TestBPFFSNotMounted(t *testing.T) {
	onThread(t, func() {
		mountBPFFS(t)
		for unix.Unmount("/sys/fs/bpf", unix.MNT_DETACH) == nil {
			// There may be several.
		}
		if detail, err := lookAtBPFFS("/sys/fs/bpf"); err == nil || !strings.Contains(err.Error(), "run mounts it") {
			t.Errorf("%q, %v", detail, err)
		}
	})
}

func unmount(dir string) { _ = unix.Unmount(dir, unix.MNT_DETACH) }

// tempCgroup makes a cgroup and removes those of crashed runs.
func tempCgroup(t *testing.T) string {
	t.Helper()
	root, err := cgroup.Root()
	if err != nil {
		t.Fatal(err)
	}
	const prefix = "meshproxy-probe-test-"
	stale, _ := filepath.Glob(filepath.Join(root, prefix+"*"))
	for _, dir := range stale {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), prefix))
		if err == nil && unix.Kill(pid, 0) != nil {
			_ = os.Remove(dir)
		}
	}
	dir := filepath.Join(root, prefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	return dir
}

func run(t *testing.T, o Options) Report {
	t.Helper()
	r, err := Run(context.Background(), o)
	if err != nil {
		t.Error(err)
	}
	return r
}

func find(t *testing.T, r Report, name string) Finding {
	t.Helper()
	f, ok := r.Find(name)
	if !ok {
		t.Errorf("no finding %q", name)
	}
	return f
}

// TestRun expects everything of the machine that the tests need anyway.
func TestRun(t *testing.T) {
	dir := tempCgroup(t)
	onThread(t, func() {
		bpffs := mountBPFFS(t)
		defer unmount(bpffs)
		r := run(t, Options{BPFFS: bpffs, CgroupRoot: dir, Ports: []Port{}})
		if !r.Usable() {
			t.Error("not usable")
		}
		seen := map[string]bool{}
		for _, f := range r.Findings {
			if seen[f.Name] {
				t.Errorf("%s is found twice", f.Name)
			}
			seen[f.Name] = true
			switch f.Name {
			case "RLIMIT_NOFILE":
				continue
			case "other sk_lookup programs":
				// Other tests may run at this time.
				continue
			case "program fentry/tcp_splice_read":
				// Not every kernel lets functions of its own be watched.
				if f.Status == StatusWarn && !f.Required && f.Consequence != "" {
					continue
				}
			}
			if f.Status != StatusOK || f.Consequence != "" {
				t.Errorf("%+v", f)
			}
		}
		for _, want := range []string{
			"kernel", "BTF", "cgroup2", "bpffs", "CAP_BPF", "program cgroup/connect4", "program sk_lookup",
			"helper bpf_sk_storage_get in cgroup", "map RingBuf", "link cgroup", "tracepoint cgroup_mkdir", "program fentry/tcp_splice_read",
			"inet_diag destroy", "inet_diag of UDP", "option SO_BINDTOIFINDEX in cgroup", "other cgroup programs",
		} {
			if !seen[want] {
				t.Errorf("no finding %q", want)
			}
		}
	})
}

func TestRunIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := Run(ctx, Options{}); !errors.Is(err, context.Canceled) || len(r.Findings) != 0 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestEveryFindingHasAConsequence(t *testing.T) {
	o := Options{Ports: DefaultPorts()}
	for _, group := range [][]check{
		kernelChecks(), hostChecks(o), capabilityChecks(Options{}), programChecks(), helperChecks(),
		mapChecks(), linkChecks(), socketChecks(), behaviourChecks(), spliceChecks(), portChecks(o), conflictChecks(o),
	} {
		for _, c := range group {
			if c.consequence == "" || c.name == "" {
				t.Errorf("%+v", c)
			}
		}
	}
}

func TestStatus(t *testing.T) {
	for _, tt := range []struct {
		name     string
		err      error
		required bool
		want     Status
		usable   bool
	}{
		{"there", nil, true, StatusOK, true},
		{"absent and required", absent("x"), true, StatusFail, false},
		{"absent and not required", absent("x"), false, StatusWarn, true},
		{"not supported", fmt.Errorf("x: %w", ebpf.ErrNotSupported), true, StatusFail, false},
		{"strange", noted("x"), true, StatusWarn, true},
		{"inconclusive and required", unix.EPERM, true, StatusUnknown, false},
		{"inconclusive and not required", unix.EPERM, false, StatusUnknown, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := check{name: "n", consequence: "c", required: tt.required, look: func() (string, error) { return "", tt.err }}.run()
			if f.Status != tt.want || (f.Consequence == "") != (tt.err == nil) || (f.Detail == "") != (tt.err == nil) {
				t.Errorf("%+v", f)
			}
			if r := (Report{Findings: []Finding{f}}); r.Usable() != tt.usable {
				t.Errorf("usable %v", r.Usable())
			}
		})
	}
}

func TestWithoutPrivileges(t *testing.T) {
	onThread(t, func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		r := run(t, Options{})
		if r.Usable() {
			t.Error("usable without capabilities")
		}
		for _, f := range r.Findings {
			// Nothing that can't be tried is said to be missing. (What other
			// tests have found before is remembered by the library.)
			kind, _, _ := strings.Cut(f.Name, " ")
			if slices.Contains([]string{"program", "helper", "map", "link", "tracepoint", "other"}, kind) && f.Status != StatusUnknown && f.Status != StatusOK {
				t.Errorf("%+v", f)
			}
		}
		for name, want := range map[string]Status{
			"CAP_BPF": StatusFail, "CAP_NET_ADMIN": StatusFail, "CAP_SYS_ADMIN": StatusWarn,
			"program cgroup/connect4": StatusUnknown, "tracepoint cgroup_mkdir": StatusUnknown, "other cgroup programs": StatusUnknown,
			"kernel": StatusOK, "cgroup2": StatusOK,
		} {
			if f := find(t, r, name); f.Status != want {
				t.Errorf("%+v, want %s", f, want)
			}
		}
	})
}

func TestHost(t *testing.T) {
	for _, tt := range []struct {
		name, check string
		options     Options
	}{
		{"no file system", "bpffs", Options{BPFFS: "/nonexistent"}},
		{"another file system", "bpffs", Options{BPFFS: t.TempDir()}},
		{"no cgroup", "cgroup2", Options{CgroupRoot: "/nonexistent"}},
		{"another directory", "cgroup2", Options{CgroupRoot: t.TempDir()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if f := find(t, run(t, tt.options), tt.check); f.Status != StatusFail || f.Consequence == "" {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	l, err := netns.Listen(context.Background(), netns.Own, "tcp", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tcp, udp := uint16(l.Addr().(*net.TCPAddr).Port), uint16(c.LocalAddr().(*net.UDPAddr).Port)
	o := Options{Ports: []Port{{"tcp", tcp, "x"}, {"udp", udp, "y"}}}
	path, err := cgroup.Self()
	if err != nil {
		t.Fatal(err)
	}
	tcpName, udpName := fmt.Sprintf("port %d/tcp", tcp), fmt.Sprintf("port %d/udp", udp)

	r := run(t, o)
	if f := find(t, r, tcpName); f.Status != StatusFail || !strings.Contains(f.Detail, "127.0.0.1:") || !strings.Contains(f.Detail, "cgroup "+path) {
		t.Errorf("in use: %+v", f)
	}
	if f := find(t, r, udpName); f.Status != StatusFail {
		t.Errorf("in use: %+v", f)
	}
	o.Running = true
	r = run(t, o)
	for _, name := range []string{tcpName, udpName} {
		if f := find(t, r, name); f.Status != StatusOK {
			t.Errorf("in use by the running node: %+v", f)
		}
	}
	o.Running = false
	_, _ = l.Close(), c.Close()
	r = run(t, o)
	for _, name := range []string{tcpName, udpName} {
		if f := find(t, r, name); f.Status != StatusOK || f.Detail != "free" {
			t.Errorf("free: %+v", f)
		}
	}
}

// TestConflicts attaches programs of somebody else's, and then makes them ours
// by pinning their links where meshproxy does.
func TestConflicts(t *testing.T) {
	dir := tempCgroup(t)
	onThread(t, func() {
		bpffs := mountBPFFS(t)
		defer unmount(bpffs)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		links, err := attachAll(dir)
		defer func() {
			for _, l := range links {
				_ = l.Close()
			}
		}()
		if err != nil {
			t.Error(err)
			return
		}
		o := Options{BPFFS: bpffs, CgroupRoot: dir, Ports: []Port{}}
		r := run(t, o)
		if f := find(t, r, "other cgroup programs"); f.Status != StatusWarn || !strings.Contains(f.Detail, "cgroup/connect4 stranger") {
			t.Errorf("%+v", f)
		}
		if f := find(t, r, "other sk_lookup programs"); f.Status != StatusWarn || !strings.Contains(f.Detail, "stranger") {
			t.Errorf("%+v", f)
		}
		pins := filepath.Join(bpffs, "meshproxy", "default", "v1", "links")
		if err := os.MkdirAll(pins, 0o700); err != nil {
			t.Error(err)
			return
		}
		for i, l := range links {
			if err := l.Pin(filepath.Join(pins, strconv.Itoa(i))); err != nil {
				t.Error(err)
			}
		}
		r = run(t, o)
		for _, name := range []string{"other cgroup programs", "other sk_lookup programs"} {
			if f := find(t, r, name); f.Status != StatusOK {
				t.Errorf("our own: %+v", f)
			}
		}
	})
}

// attachAll attaches a program to the cgroup at dir and one to the namespace
// of the thread.
func attachAll(dir string) ([]link.Link, error) {
	var links []link.Link
	for _, at := range []struct {
		typ    ebpf.ProgramType
		attach ebpf.AttachType
		path   string
	}{
		{ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, dir},
		{ebpf.SkLookup, ebpf.AttachSkLookup, "/proc/thread-self/ns/net"},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "stranger", Type: at.typ, AttachType: at.attach, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		if err != nil {
			return links, err
		}
		defer prog.Close()
		target, err := os.Open(at.path)
		if err != nil {
			return links, err
		}
		defer target.Close()
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(target.Fd()), Program: prog, Attach: at.attach})
		if err != nil {
			return links, err
		}
		links = append(links, l)
	}
	return links, nil
}

func TestParseRelease(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.18.44-fc-v445": {6, 18}, "5.10-rc1": {5, 10}, "5.4": {5, 4}, "10.0.1+": {10, 0},
	} {
		major, minor, ok := parseRelease(release)
		if !ok || [2]int{major, minor} != want {
			t.Errorf("%s: %d.%d, %v", release, major, minor, ok)
		}
	}
	for _, release := range []string{"", "6", "six.1", "6.x"} {
		if _, _, ok := parseRelease(release); ok {
			t.Errorf("%q is understood", release)
		}
	}
}

func TestHelperName(t *testing.T) {
	if got := helperName(asm.FnGetCurrentAncestorCgroupId); got != "bpf_get_current_ancestor_cgroup_id" {
		t.Error(got)
	}
}
