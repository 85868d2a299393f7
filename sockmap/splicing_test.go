// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// The direct way: front may connect to back, at 10.9.0.1:5432 and its IPv6
// counterpart, which are known as 240.240.0.1:80 and [2001:2::1]:80.
const (
	direct4, direct6 = "10.9.0.1:5432", "[2001:db8::1]:5432"
	virtual4         = "240.240.0.1:80"
	virtual6         = "[2001:2::1]:80"
	mapped           = "[::ffff:240.240.0.1]:80"
)

func (w *world) directState(v Verdict) State {
	front, back := w.workload("front"), w.workload("back")
	back.InboundPorts, back.NetNS = []uint16{5432}, w.cookie
	s := State{Workloads: []Workload{front, back}}
	for addr, at := range map[string][]string{direct4: {virtual4, direct4}, direct6: {virtual6, direct6}} {
		local := Local{Addr: netip.MustParseAddrPort(addr), Workload: back.Name, NetNS: w.cookie}
		for _, a := range at {
			d := destination(a, "db")
			d.Locals, d.OnlyLocal = []Local{local}, true
			s.Destinations = append(s.Destinations, d)
		}
		s.Accesses = append(s.Accesses, Access{Source: front.Name, Local: local, Verdict: v})
	}
	return s
}

// newSplicing makes a world in which splicing is on and the listeners are known
// for sockets that do not block.
func newSplicing(t *testing.T) *splicing {
	return newWorld(t).splicing()
}

func (w *world) splicing() *splicing {
	s := w.unproven()
	for addr, at := range map[string]string{virtual4: direct4, virtual6: direct6} {
		p := s.pair(addr, at)
		p.exchange(w.t, 100)
		p.closeClient()
		p.closeServer()
		s.over()
		s.eventually("the listener is known", func() bool {
			return s.port(at).Flags&bpf.CapturePortFlagsPORT_NONBLOCKING != 0
		})
		s.eventually("the client is known", func() bool {
			return s.habits("front", "db").Reads != 0
		})
	}
	s.before = s.traffic()
	s.opened = s.connections("front", OutcomeLocal)
	return s
}

// over waits until the kernel is done with all connections that were closed: what
// their last segments do may come after close(2).
func (w *splicing) over() {
	w.t.Helper()
	w.eventually("all connections have ended", func() bool {
		left, err := contents[uint64, bpf.CaptureDirect](w.kernel.maps[bpf.CaptureMapDirects])
		if err != nil {
			w.t.Fatal(err)
		}
		return len(left) == 0 && w.stats().Flows == 0
	})
}

// newUnproven is before any connection was made.
func newUnproven(t *testing.T) *splicing {
	return newWorld(t).unproven()
}

func (w *world) unproven() *splicing {
	w.start()
	w.testSplice()
	w.apply(w.directState(Allow))
	s := &splicing{world: w, front: w.process("front"), back: w.process("back"), listeners: make(map[string]int)}
	for _, addr := range []string{direct4, direct6} {
		s.listeners[addr] = s.back.listen(addr)
	}
	return s
}

type splicing struct {
	*world
	front, back *actor
	listeners   map[string]int
	// before is what went on until the test began.
	before Traffic
	opened uint64
}

// since is what went from front to db since the test began.
func (w *splicing) since() Traffic {
	w.t.Helper()
	t := w.traffic()
	t.Opened -= w.before.Opened
	t.Closed -= w.before.Closed
	t.Spliced -= w.before.Spliced
	t.Sent -= w.before.Sent
	t.Received -= w.before.Received
	t.Redirected -= w.before.Redirected
	for why, n := range w.before.Fallbacks {
		if t.Fallbacks[why] -= n; t.Fallbacks[why] == 0 {
			delete(t.Fallbacks, why)
		}
	}
	return t
}

// port is what the kernel knows of a listener.
func (w *splicing) port(at string) (p bpf.CapturePort) {
	w.t.Helper()
	key := bpf.CapturePortKey{Netns: w.cookie, Address: toAddress(netip.MustParseAddrPort(at))}
	if err := w.kernel.maps[bpf.CaptureMapPorts].Lookup(key, &p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// habits is how a workload reads as a client of a service.
func (w *splicing) habits(workload, service string) (h bpf.CaptureHabit) {
	w.t.Helper()
	w.mu.Lock()
	key := bpf.CaptureTrafficKey{
		Workload: w.names.byName[newEntity(kindWorkload, name(workload))],
		Service:  w.names.byName[newEntity(kindService, name(service))],
	}
	w.mu.Unlock()
	if err := w.kernel.maps[bpf.CaptureMapHabits].Lookup(key, &h); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		w.t.Fatal(err)
	}
	return h
}

// eventually waits for what the kernel does on its own time.
func (w *splicing) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Duration(patiently)); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			w.t.Fatalf("it never came about that %s", what)
		}
	}
}

// testSplice runs the self-test with sockets of the proxy's process.
func (w *world) testSplice() {
	w.t.Helper()
	err := w.TestSplice(func(family int) (int, error) {
		return unix.PidfdGetfd(w.proxy.pidfd, w.proxy.socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK), 0)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	s := w.stats()
	if !s.Splice.On {
		w.t.Fatalf("splicing is off: %s", s.Splice.Reason)
	}
}

func (w *world) stats() Stats {
	w.t.Helper()
	s, err := w.Stats()
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// traffic is what went from front to db.
func (w *world) traffic() Traffic {
	w.t.Helper()
	for _, t := range w.stats().Traffic {
		if t.Source == name("front") && t.Service == name("db") {
			return t
		}
	}
	return Traffic{}
}

func TestSelfTest(t *testing.T) {
	w := newWorld(t)
	w.start()
	if s := w.stats().Splice; s.On || !s.Loaded {
		t.Fatalf("before the self-test: %+v", s)
	}
	w.testSplice()
	s := w.stats().Splice
	t.Logf("self-test: %+v", s.Test)
	for _, family := range []string{"IPv4", "IPv6"} {
		// Half of what a new socket's buffer holds by default (tcp_rmem), at least.
		if n := s.Test.Accepted[family]; n < 64<<10 {
			t.Errorf("%s: a receiver that does not read took %d bytes", family, n)
		}
	}
	if list, err := w.DirectConnections(); err != nil || len(list) != 0 {
		t.Errorf("connections %+v, %v", list, err)
	}
}

// TestSelfTestElsewhere: sockets that the programs do not see.
func TestSelfTestElsewhere(t *testing.T) {
	w := newWorld(t)
	w.start()
	if err := w.TestSplice(nil); err != nil {
		t.Fatal(err)
	}
	if s := w.stats().Splice; s.On || s.Reason == "" {
		t.Errorf("%+v", s)
	}
}

func TestDirect(t *testing.T) {
	w := newSplicing(t)
	for _, tc := range []struct{ dial, at, client string }{
		{virtual4, direct4, "10.9.0.1"},
		{direct4, direct4, "10.9.0.1"},
		{virtual6, direct6, "2001:db8::1"},
		{direct6, direct6, "2001:db8::1"},
		{mapped, direct4, "10.9.0.1"},
	} {
		t.Run(tc.dial, func(t *testing.T) {
			fd, err := w.front.dialNonblock(tc.dial)
			if err != nil {
				t.Fatal(err)
			}
			if got := w.front.peer(fd).String(); got != tc.dial {
				t.Errorf("the client's getpeername shows %s", got)
			}
			conn, from := w.back.acceptNonblock(w.listeners[tc.at])
			if from.Addr().String() != tc.client || from.Port() != w.front.local(fd).Port() || w.back.peer(conn) != from {
				t.Errorf("the server sees %s", from)
			}
			w.front.with(fd, func(fd int) error { return w.isSpliced(t, fd) })
			w.back.with(conn, func(fd int) error { return w.isSpliced(t, fd) })
			w.front.close(fd)
			w.back.close(conn)
		})
	}
	if n := w.connections("front", OutcomeLocal) - w.opened; n != 5 {
		t.Errorf("counted %d", n)
	}
	w.over()
	tr := w.since()
	if tr.Opened != 5 || tr.Closed != 5 || tr.Spliced != 5 || len(tr.Fallbacks) != 0 {
		t.Errorf("traffic %+v", tr)
	}
	if s := w.stats(); s.Flows != 0 {
		t.Errorf("%d flows are left", s.Flows)
	}
}

func (w *world) isSpliced(t *testing.T, fd int) error {
	t.Helper()
	s, err := w.spliceOf(fd)
	if err != nil {
		t.Errorf("not spliced: %v", err)
	} else if s.Fallback != 0 {
		t.Errorf("fallback: %s", Fallback(s.Fallback))
	}
	return nil
}

// TestDirectVerdicts: what policy says, and what else must hold.
func TestDirectVerdicts(t *testing.T) {
	w := newSplicing(t)
	dial := func(a *actor, addr string) error {
		fd, err := a.dial(addr)
		a.close(fd)
		return err
	}
	captured := func() uint64 { return w.connections("front", OutcomeCaptured) }

	w.apply(w.directState(Deny))
	for _, addr := range []string{virtual4, virtual6, mapped, direct4} {
		if err := dial(w.front, addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("denied: %v", err)
		}
	}
	if n := w.refusals("front", ReasonPolicy); n != 4 {
		t.Errorf("counted %d denials", n)
	}
	s := w.directState(Deny)
	for i := range s.Destinations {
		s.Destinations[i].OnlyLocal = false
	}
	w.apply(s)
	if err := dial(w.front, virtual4); err != nil || captured() != 1 {
		t.Errorf("denied here, but perhaps not elsewhere: %v, captured %d", err, captured())
	}
	w.apply(w.directState(Ask))
	if err := dial(w.front, virtual4); err != nil || captured() != 2 {
		t.Errorf("for the proxy to decide: %v, captured %d", err, captured())
	}
	w.apply(w.directState(Allow))
	if err := dial(w.front, virtual4); err != nil || captured() != 2 {
		t.Errorf("allowed: %v, captured %d", err, captured())
	}

	// Nobody listens: the proxy may know another endpoint.
	w.back.close(w.listeners[direct4])
	if err := dial(w.front, virtual4); err != nil || captured() != 3 {
		t.Errorf("nobody listens: %v, captured %d", err, captured())
	}
	// Somebody else listens there.
	thief := w.process("thief")
	fd := thief.listen(direct4)
	if err := dial(w.front, virtual4); err != nil || captured() != 4 {
		t.Errorf("somebody else listens: %v, captured %d", err, captured())
	}
	thief.close(fd)
	w.listeners[direct4] = w.back.listen(direct4)
	if err := dial(w.front, virtual4); err != nil || captured() != 4 {
		t.Errorf("listening again: %v, captured %d", err, captured())
	}
	// A socket that is bound to loopback or a device.
	bound := w.front.socket(unix.AF_INET, unix.SOCK_STREAM)
	if err := errors.Join(w.front.bind(bound, "127.0.0.1:0"), w.front.connect(bound, virtual4)); err != nil || captured() != 5 {
		t.Errorf("bound to loopback: %v, captured %d", err, captured())
	}
}

// TestDirectWithoutProxy: what is direct stays direct.
func TestDirectWithoutProxy(t *testing.T) {
	w := newSplicing(t)
	if err := w.Retire(); err != nil {
		t.Fatal(err)
	}
	w.proxy.kill()
	w.Capture.Close()
	for _, addr := range []string{virtual4, virtual6} {
		if _, err := w.front.dialNonblock(addr); err != nil {
			t.Errorf("dial %s: %v", addr, err)
		}
	}
	w.open()
	if tr, s := w.since(), w.stats(); tr.Spliced != 2 || !s.Splice.On {
		t.Errorf("traffic %+v, splice %+v", tr, s.Splice)
	}
}

// TestDirectStrict: local processes that are no workload stay out, workloads
// of the node come in.
func TestDirectStrict(t *testing.T) {
	w := newSplicing(t)
	s := w.directState(Allow)
	s.Workloads[1].InboundLocal = mesh.Deny
	w.apply(s)
	if _, err := w.process("nobody").dial(direct4); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("no workload: %v", err)
	}
	if _, err := w.front.dial(virtual4); err != nil {
		t.Errorf("workload: %v", err)
	}
}

func TestCloseDirect(t *testing.T) {
	w := newSplicing(t)
	for addr, at := range map[string]string{virtual4: direct4, virtual6: direct6, mapped: direct4} {
		fd, err := w.front.dialNonblock(addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, _ := w.back.acceptNonblock(w.listeners[at])
		list, err := w.DirectConnections()
		if err != nil || len(list) != 1 {
			t.Fatalf("connections %+v, %v", list, err)
		}
		d := list[0]
		if d.Source != name("front") || d.Service != name("db") || d.Endpoint.Workload != name("back") ||
			d.Endpoint.Addr.String() != at || !d.Established || !d.Spliced || d.Client.Port() != w.front.local(fd).Port() {
			t.Errorf("connection %+v", d)
		}
		if err := w.CloseDirect(&d); err != nil {
			t.Fatal(err)
		}
		if _, err := w.front.do(call{Op: "write", FD: fd, Data: "x"}); err == nil {
			t.Error("the client can still write")
		}
		if _, err := w.back.do(call{Op: "recvfrom", FD: conn}); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server reads: %v", err)
		}
		w.front.close(fd)
		w.back.close(conn)
		w.over()
		if list, err := w.DirectConnections(); err != nil || len(list) != 0 {
			t.Fatalf("connections %+v, %v", list, err)
		}
	}
}

// TestUnspliced: a workload's switch keeps connections TCP, and turns living
// ones.
func TestUnspliced(t *testing.T) {
	w := newSplicing(t)
	p := w.pair(virtual4, direct4)
	p.exchange(t, 1000)
	s := w.directState(Allow)
	s.Workloads[1].Unspliced = true
	w.apply(s)
	p.exchange(t, 1000)
	for _, fd := range []int{p.client, p.server} {
		if s, err := w.spliceOf(fd); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_WORKLOAD {
			t.Errorf("state %+v, %v", s, err)
		}
	}
	q := w.pair(virtual4, direct4)
	if _, err := w.spliceOf(q.client); err == nil {
		t.Error("a connection was spliced")
	}
	q.exchange(t, 1000)
}

// TestDirectClosed: what was said on a connection is told when both ends are
// closed.
func TestDirectClosed(t *testing.T) {
	w := newSplicing(t)
	if err := w.ReportDirect(true); err != nil {
		t.Fatal(err)
	}
	for _, spliced := range []bool{true, false} {
		if !spliced {
			if err := w.PauseSplicing("to compare"); err != nil {
				t.Fatal(err)
			}
		}
		p := w.pair(virtual4, direct4)
		p.exchange(t, 100_000)
		if err := patiently.write(p.client, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if err := patiently.expect(p.server, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		if n, err := patiently.read(p.server, make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		p.closeServer()
		if n, err := patiently.read(p.client, make([]byte, 8)); n != 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
		p.closeClient()
		e := event[*DirectClosed](t, w.Capture)
		if e.Source != name("front") || e.Service != name("db") || e.Endpoint.Workload != name("back") ||
			e.Dialled.String() != virtual4 || e.Spliced != spliced || e.Age <= 0 {
			t.Errorf("event %+v", e)
		}
		if e.Sent != 105_000 || e.Received != 100_000 {
			t.Errorf("sent %d, received %d", e.Sent, e.Received)
		}
		if list, err := w.DirectConnections(); err != nil || len(list) != 0 {
			t.Errorf("connections %+v, %v", list, err)
		}
	}
}
