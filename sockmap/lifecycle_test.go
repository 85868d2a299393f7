// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// pinned returns the ids of the links, and of the programs that they run.
func (w *world) pinned() (links map[string]link.ID, programs map[string]uint32) {
	w.t.Helper()
	dir := filepath.Join(bpffs, "meshproxy", w.opts.Instance, layoutDir, "links")
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	links, programs = make(map[string]link.ID), make(map[string]uint32)
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		links[e.Name()], programs[e.Name()] = info.ID, uint32(info.Program)
	}
	return links, programs
}

func (w *world) close() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func TestAdopt(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}}
	w.apply(s)
	links, programs := w.pinned()
	web := w.process("web")
	dial := func() Flow {
		t.Helper()
		if _, err := web.dial("240.240.0.1:80"); err != nil {
			t.Fatal(err)
		}
		f, err := w.accepted(unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	before := dial()
	w.close()
	w.close() // twice
	w.open()
	// The state is in force before anything is said about it.
	if f := dial(); f.Workload != before.Workload || f.WorkloadName != name("web") {
		t.Errorf("flow %+v, before %+v", f, before)
	}
	again, same := w.pinned()
	delete(links, readersPin) // attached anew
	for hook, id := range links {
		if again[hook] != id || same[hook] != programs[hook] {
			t.Errorf("%s: link %d with program %d, was %d with %d", hook, again[hook], same[hook], id, programs[hook])
		}
	}
	s.Workloads = append([]Workload{w.workload("other")}, s.Workloads...)
	w.apply(s)
	if f := dial(); f.Workload != before.Workload {
		t.Errorf("workload is %d now, was %d", f.Workload, before.Workload)
	}
}

// TestUpgrade: constants differ (as they would with another program), so each
// link gets a new program and stays the same link.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	links, programs := w.pinned()
	constants := filepath.Join(bpffs, "meshproxy", w.opts.Instance, layoutDir, "maps", constantsPin)
	if err := os.Remove(constants); err != nil {
		t.Fatal(err)
	}
	w.close()
	w.open()
	again, updated := w.pinned()
	for _, h := range hooks {
		if updated[h.name] == programs[h.name] {
			t.Errorf("%s runs the old program", h.name)
		}
		if h.tracepoint == "" && again[h.name] != links[h.name] {
			t.Errorf("%s was attached anew", h.name)
		}
	}
	if _, err := w.process("web").dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Error(err)
	}
}

// TestResize: a map of another size takes the place of the old one.
func TestResize(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	w.close()
	w.opts.MaxFlows = 123
	w.open()
	if n := w.kernel.maps[bpf.CaptureMapFlows].MaxEntries(); n != 123 {
		t.Errorf("%d entries", n)
	}
	if _, err := w.process("web").dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Error(err)
	}
}

// age makes the pinned state that of another layout.
func (w *world) age() (dir string) {
	w.t.Helper()
	dir = filepath.Join(bpffs, "meshproxy", w.opts.Instance)
	if err := os.Rename(filepath.Join(dir, layoutDir), filepath.Join(dir, "v0")); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// TestOtherLayout: what another layout left decides until there is something to
// put in its place. The links that decide are the same all the time.
func TestOtherLayout(t *testing.T) {
	w := newWorld(t)
	w.start()
	s := State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}}
	w.apply(s)
	links, _ := w.pinned()
	old := w.kernel.maps[bpf.CaptureMapFlows]
	key, err := old.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	w.close()
	dir := w.age()
	if err := os.MkdirAll(filepath.Join(dir, "stage", "links"), 0o700); err != nil { // of a crash
		t.Fatal(err)
	}
	w.open()
	if !exists(filepath.Join(dir, "v0")) || exists(filepath.Join(dir, layoutDir)) {
		t.Error("the state was replaced before there is another")
	}
	// The old program captures it still, in the old map.
	if _, err := w.process("web").dial("240.240.0.1:80"); err != nil {
		t.Errorf("dial meanwhile: %v", err)
	}
	if _, err := w.accepted(unix.AF_INET); !errors.Is(err, ErrNoFlow) {
		t.Errorf("flow %v", err)
	}
	if flows, err := contents[bpf.CaptureFlowKey, bpf.CaptureFlow](key); err != nil || len(flows) != 1 {
		t.Errorf("%d flows in the old map, %v", len(flows), err)
	}
	w.serveAgain()
	w.apply(s)
	again, _ := w.pinned()
	for _, h := range hooks {
		if h.decides && again[h.name] != links[h.name] {
			t.Errorf("%s was attached anew", h.name)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != layoutDir {
		t.Errorf("state directory has %v, %v", left, err)
	}
	if _, err := w.process("web").dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Error(err)
	}
}

// serveAgain makes a new proxy after the old one is gone.
func (w *world) serveAgain() {
	w.t.Helper()
	w.proxy.kill()
	w.serve()
}

// TestRootReplaced: the cgroup that the links are attached to is removed and
// made again. Its links are dead, though they are pinned.
func TestRootReplaced(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.close()
	w.proxy.kill()
	removeCgroup(w.dir)
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.open()
	w.serve()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	if _, err := w.process("web").dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Error(err)
	}
}

func TestLeave(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	_, programs := w.pinned()
	delete(programs, readersPin) // not every kernel takes it
	if len(programs) != len(hooks)+1 {
		t.Errorf("%d programs are pinned", len(programs))
	}
	if err := Leave(w.opts); !errors.Is(err, ErrBusy) {
		t.Errorf("leave while it runs: %v", err)
	}
	if _, err := Open(w.opts); !errors.Is(err, ErrBusy) {
		t.Errorf("open twice: %v", err)
	}
	w.close()
	for range 2 {
		if err := Leave(w.opts); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(bpffs, "meshproxy", w.opts.Instance)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
	for _, h := range hooks {
		if h.tracepoint != "" {
			continue
		}
		root, err := os.Open(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		q, err := link.QueryPrograms(link.QueryOptions{Target: int(root.Fd()), Attach: h.attach})
		root.Close()
		if err != nil || len(q.Programs) != 0 {
			t.Errorf("%s: %v programs, %v", h.name, q, err)
		}
	}
	if _, err := w.process("web").dial("240.240.0.1:80"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("dial: %v", err)
	}
	if err := Leave(Options{BPFFS: t.TempDir(), Instance: "x"}); !errors.Is(err, ErrNotBPFFS) {
		t.Errorf("leave elsewhere: %v", err)
	}
}

// TestOwnerKilled: kill -9, with connections open. What the kernel does needs no
// process.
func TestOwnerKilled(t *testing.T) {
	w := newWorld(t)
	s := State{Workloads: []Workload{w.workload("web"), w.workload("db")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}}
	kill := w.own(s)
	proxy := w.process("proxy")
	web := w.process("web")
	_, open := w.serving("db", "0.0.0.0:5432")
	_ = open
	// No listeners: refused at once, by the kernel's own RST.
	if _, err := web.dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial without listeners: %v", err)
	}
	if _, err := Open(w.opts); !errors.Is(err, ErrBusy) {
		t.Errorf("open while it is owned: %v", err)
	}
	kill()
	far := w.neighbour()
	if _, err := far.dial("10.8.0.1:5432"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("plaintext from elsewhere: %v", err)
	}
	if err := proxy.bind(proxy.socket(unix.AF_INET, unix.SOCK_STREAM), "127.0.0.1:15001"); !errors.Is(err, unix.EPERM) {
		t.Errorf("bind to the proxy's port: %v", err)
	}
	late, listener := w.serving("db", "0.0.0.0:5433") // learned without anybody watching
	if _, err := far.dial("10.8.0.1:5433"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("plaintext from elsewhere: %v", err)
	}
	untouched(t, w.process("nobody"), "127.0.0.1:5433", late, listener)
	if _, err := w.process("web").dial("240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}

	w.open()
	if n := w.NetNS(); len(n) != 1 {
		t.Errorf("namespaces %v", n)
	}
	w.serve()
	if _, err := web.dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if f, err := w.accepted(unix.AF_INET); err != nil || f.WorkloadName != name("web") || f.Service != name("db") {
		t.Errorf("flow %+v, %v", f, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		set  func(*Options)
		want error
	}{
		{"no cgroup2", func(o *Options) { o.CgroupRoot = t.TempDir() }, nil},
		{"no bpffs", func(o *Options) { o.BPFFS = t.TempDir() }, ErrNotBPFFS},
		{"relative root", func(o *Options) { o.CgroupRoot = "x" }, nil},
		{"instance", func(o *Options) { o.Instance = "../x" }, nil},
		{"no port", func(o *Options) { o.Ports.Outbound = 0 }, nil},
		{"no logger", func(o *Options) { o.Logger = nil }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			opts := w.opts
			test.set(&opts)
			c, err := Open(opts)
			if err == nil {
				c.Close()
				t.Fatal("opened")
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("error %v", err)
			}
		})
	}
}
