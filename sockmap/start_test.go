// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// TestStartRace: processes that dial as soon as they exist, in cgroups that have
// only just been made, a thousand of workloads beside a thousand of others,
// while the state is applied over and over.
func TestStartRace(t *testing.T) {
	const each = 1000
	w := newWorld(t)
	w.open()
	dialer := filepath.Join(t.TempDir(), "dialer")
	build := exec.Command("go", "build", "-o", dialer, "./testdata/dialer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := w.AttachNetNS(w.ns.FD()); err != nil {
		t.Fatal(err)
	}
	if err := w.Heartbeat(); err != nil {
		t.Fatal(err)
	}
	captured := w.acceptAll()

	unit, prefix := w.workload("unit"), w.workload("prefix")
	unit.Selectors = []mesh.Selector{{Kind: mesh.SelectUnit, Value: "web@*.service"}}
	prefix.Selectors = []mesh.Selector{{Kind: mesh.SelectCgroupPrefix, Value: w.path + "/system.slice/db-"}}
	s := State{Workloads: []Workload{unit, prefix}, Destinations: []Destination{destination("240.240.0.1:80", "db")}}
	w.cgroup("system.slice")
	w.apply(s)

	stop := make(chan struct{})
	var applying sync.WaitGroup
	applying.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := w.Apply(s); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer applying.Wait()
	defer close(stop)
	// Nobody reads the events: that must not matter.
	var wrong atomic.Int32
	run := func(i int) {
		for _, c := range []struct {
			name string
			want syscall.Errno
		}{
			{[]string{"web@%d.service", "db-%d.service"}[i%2], 0},
			{"other@%d.service", unix.ENETUNREACH},
		} {
			got, err := dialIn(filepath.Join(w.dir, "system.slice", fmt.Sprintf(c.name, i)), w.ns, dialer)
			if err != nil || got != c.want {
				if wrong.Add(1) < 5 {
					t.Errorf("%s %d: %v, %v", c.name, i, got, err)
				}
			}
		}
	}
	var running sync.WaitGroup
	for k := range 4 {
		running.Go(func() {
			for i := k; i < each; i += 4 {
				run(i)
			}
		})
	}
	running.Wait()
	for workload, want := range map[string]uint64{"unit": each / 2, "prefix": each / 2} {
		if n := w.connections(workload, OutcomeCaptured); n != want {
			t.Errorf("%s: %d connections were captured, want %d", workload, n, want)
		}
	}
	if n := captured(); n != each {
		t.Errorf("%d flows arrived, want %d", n, each)
	}
}

// dialIn makes a cgroup, runs the dialer in it and removes it.
func dialIn(dir string, ns *netns.Handle, dialer string) (syscall.Errno, error) {
	cmd := exec.Command(dialer)
	err := netns.Do(ns.FD(), func() error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer f.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
		return cmd.Start()
	})
	if err != nil {
		return 0, err
	}
	err = cmd.Wait()
	removeCgroup(dir)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return syscall.Errno(exit.ExitCode()), nil
	}
	return 0, err
}

// acceptAll plays a proxy that accepts and closes, until the test ends; the
// function it returns says how many flows there were.
func (w *world) acceptAll() func() int {
	w.t.Helper()
	l, err := netns.Listen(context.Background(), w.ns.FD(), "tcp4", "127.0.0.1:15001", w.Control)
	if err != nil {
		w.t.Fatal(err)
	}
	cookie, err := netcookie.Of(w.ns.FD())
	if err != nil {
		w.t.Fatal(err)
	}
	flows := make(chan bool, 4096)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		defer close(flows)
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				w.t.Error(err)
				return
			}
			_, err = w.Flow(cookie, netip.MustParseAddrPort(c.RemoteAddr().String()), netip.MustParseAddrPort(c.LocalAddr().String()))
			if err != nil {
				w.t.Errorf("flow of %s: %v", c.RemoteAddr(), err)
			}
			c.Close()
			flows <- err == nil
		}
	})
	w.t.Cleanup(func() { l.Close(); accepting.Wait() })
	return func() (n int) {
		// Everybody has connected by now, so has been queued.
		for range cap(flows) {
			if n == 1000 {
				break
			}
			if !<-flows {
				break
			}
			n++
		}
		return n
	}
}
