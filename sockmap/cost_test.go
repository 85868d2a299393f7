// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// TestCost reports what the programs cost per run (go test -v -run Cost). It
// fails only where something is badly off: other tests run beside it.
func TestCost(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("a.slice/web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	w.process("server").listen("10.9.0.1:80")
	for _, test := range []struct{ who, cgroup, addr string }{
		{"no workload", "b.slice/c.slice/d.service", "10.9.0.1:80"},
		{"passthrough", "a.slice/web", "10.9.0.1:80"},
		{"captured", "a.slice/web", "240.240.0.1:80"},
	} {
		a := w.process(test.cgroup)
		hooks := []string{"connect4", "sock_ops"}
		least := make(map[string]time.Duration) // of several rounds: others interrupt programs, too
		for range 10 {
			before := w.runs()
			for range 10 {
				fd, _ := a.dial(test.addr)
				if fd > 0 {
					a.close(fd)
				}
			}
			after := w.runs()
			for _, hook := range hooks {
				n := after[hook].RunCount - before[hook].RunCount
				if n == 0 {
					t.Fatalf("%s: %s did not run", test.who, hook)
				}
				each := (after[hook].Runtime - before[hook].Runtime) / time.Duration(n)
				if have, ok := least[hook]; !ok || each < have {
					least[hook] = each
				}
			}
		}
		for _, hook := range hooks {
			t.Logf("%s: %s %v per run", test.who, hook, least[hook])
			if least[hook] > 100*time.Microsecond {
				t.Errorf("%s: %s takes %v", test.who, hook, least[hook])
			}
		}
	}
}

func (w *world) runs() map[string]*ebpf.ProgramStats {
	w.t.Helper()
	runs := make(map[string]*ebpf.ProgramStats)
	for _, h := range hooks {
		l, err := link.LoadPinnedLink(filepath.Join(linksDir(w.kernel.dir), h.name), nil)
		if err != nil {
			w.t.Fatal(err)
		}
		info, err := l.Info()
		l.Close()
		if err != nil {
			w.t.Fatal(err)
		}
		p, err := ebpf.NewProgramFromID(info.Program)
		if err != nil {
			w.t.Fatal(err)
		}
		runs[h.name], err = p.Stats()
		p.Close()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return runs
}
