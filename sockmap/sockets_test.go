// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceOfUser: the kernel lets an unprivileged process bind a socket to a
// device once, and not even a program may undo it for the process. It is
// refused at once rather than left hanging.
func TestDeviceOfUser(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	a := startActor(t, w.cgroup("web"), w.ns, 4711)
	fd := a.socket(unix.AF_INET, unix.SOCK_STREAM)
	a.must(call{Op: "device", FD: fd, Data: "veth0"})
	if err := a.connect(fd, "240.240.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	if n := w.refusals("web", ReasonDevice); n != 1 {
		t.Errorf("counted %d refusals", n)
	}
}

// TestConnectAgain: one socket, several destinations.
func TestConnectAgain(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{
		Workloads:    []Workload{w.workload("web")},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), destination("240.240.0.2:0", "cache")},
	})
	server, web := w.process("server"), w.process("web")
	listener := server.listen("10.9.0.1:82")
	fd := web.socket(unix.AF_INET, unix.SOCK_STREAM)
	web.must(call{Op: "device", FD: fd, Data: "lo"})
	if err := web.connect(fd, "240.240.0.2:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("first: %v", err)
	}
	for range 2 {
		if err := web.connect(fd, "240.240.0.1:80"); err != nil {
			t.Fatalf("captured: %v", err)
		}
		if f, err := w.accepted(unix.AF_INET); err != nil || f.Service != name("db") {
			t.Errorf("flow %+v, %v", f, err)
		}
		web.must(call{Op: "disconnect", FD: fd})
		if err := web.connect(fd, "10.9.0.1:82"); err != nil {
			t.Fatalf("passthrough: %v", err)
		}
		if got := web.peer(fd).String(); got != "10.9.0.1:82" {
			t.Errorf("peer %s", got)
		}
		conn, _ := server.accept(listener)
		server.close(conn)
		web.must(call{Op: "disconnect", FD: fd})
	}
}

// TestDeviceReturns: a socket whose device had to go for a captured connection
// has it again for the next one.
func TestDeviceReturns(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	web := w.process("web")
	fd := web.socket(unix.AF_INET, unix.SOCK_STREAM)
	web.must(call{Op: "device", FD: fd, Data: "veth0"})
	if err := web.connect(fd, "240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	web.must(call{Op: "disconnect", FD: fd})
	if err := web.connect(fd, "10.9.0.1:82"); err == nil {
		t.Error("connected over a device that leads nowhere")
	}
	if r := web.must(call{Op: "getdevice", FD: fd}); r.Data != "veth0" {
		t.Errorf("device is %q", r.Data)
	}
}

// TestFastOpen: sendmsg that connects.
func TestFastOpen(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{Workloads: []Workload{w.workload("web")}, Destinations: []Destination{destination("240.240.0.1:80", "db")}})
	web := w.process("web")
	fd := web.socket(unix.AF_INET, unix.SOCK_STREAM)
	web.must(call{Op: "fastopen", FD: fd, Addr: netip.MustParseAddrPort("240.240.0.1:80"), Data: "hello"})
	if got := web.peer(fd).String(); got != "240.240.0.1:80" {
		t.Errorf("peer %s", got)
	}
	if f, err := w.accepted(unix.AF_INET); err != nil || f.Service != name("db") {
		t.Errorf("flow %+v, %v", f, err)
	}
}
