// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

var errRefused = errors.New("connection refused")

// network is what a Checker dials in tests. It runs in a synctest bubble.
type network struct {
	changes atomic.Int32 // told by the balancer

	mu      sync.Mutex
	down    map[netip.Addr]bool
	hang    map[netip.Addr]bool
	dialled map[netip.Addr]int
	now     int // probes under way
	most    int
}

func newNetwork() *network {
	return &network{down: make(map[netip.Addr]bool), hang: make(map[netip.Addr]bool), dialled: make(map[netip.Addr]int)}
}

func (n *network) set(where map[netip.Addr]bool, a netip.Addr, yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	where[a] = yes
}

func (n *network) count(a netip.Addr) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dialled[a]
}

func (n *network) dial(ctx context.Context, _ *mesh.Service, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.now++
	n.most = max(n.most, n.now)
	n.dialled[addr.Addr()]++
	down, hang := n.down[addr.Addr()], n.hang[addr.Addr()]
	n.mu.Unlock()
	defer func() { n.mu.Lock(); n.now--; n.mu.Unlock() }()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(time.Millisecond)
	if down {
		return nil, errRefused
	}
	client, server := net.Pipe()
	_ = server.Close()
	return client, nil
}

// checking runs a checker over a store in a bubble.
func checking(t *testing.T, n *network, opts CheckerOptions, services ...*mesh.Service) (*Balancer, *discovery.Store) {
	t.Helper()
	b := seeded()
	b.opts.Changed = func() { n.changes.Add(1) }
	store := discovery.NewStore(mesh.Build(mesh.BuildInput{Services: services}))
	opts.Dial = n.dial
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { NewChecker(b, opts).Run(ctx, store); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return b, store
}

func checked(weights ...uint32) *mesh.Service {
	s := weighted("", weights...)
	s.HealthCheck = &mesh.HealthCheck{Interval: 10 * time.Second, Timeout: time.Second, Healthy: 2, Unhealthy: 3}
	return s
}

func TestCheckThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := newNetwork(), checked(1, 1)
		var log bytes.Buffer
		b, _ := checking(t, n, CheckerOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))}, s)
		sick := s.Endpoints[0]
		// after waits for the endpoint's next probes.
		after := func(probes int) string {
			for want := n.count(sick.Address) + probes; n.count(sick.Address) < want; {
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(2 * time.Second) // for the result, timeouts included
			synctest.Wait()
			return b.Summary(s).Endpoints[0].Check
		}
		if got := after(2); got != "passing" {
			t.Errorf("healthy endpoint: %s", got)
		}
		n.set(n.down, sick.Address, true)
		if got := after(2); got != "passing" {
			t.Errorf("after two failures: %s", got)
		}
		if got := after(1); got != "failing" {
			t.Errorf("after three failures: %s", got)
		}
		if e := b.Summary(s).Endpoints[0]; e.Usable || !strings.Contains(e.CheckError, "connection refused") {
			t.Errorf("summary %+v", e)
		}
		for range 50 {
			if p := mustPick(t, b, s); p.Endpoint == sick || p.Panic {
				t.Fatal("the failing endpoint was picked")
			}
		}
		n.set(n.down, sick.Address, false)
		n.set(n.hang, sick.Address, true) // a timeout is a failure, too
		if got := after(1); got != "failing" {
			t.Errorf("hanging: %s", got)
		}
		n.set(n.hang, sick.Address, false)
		if got := after(1); got != "failing" {
			t.Errorf("after one success: %s", got)
		}
		if got := after(1); got != "passing" {
			t.Errorf("after two successes: %s", got)
		}
		if c := n.changes.Load(); c != 2 {
			t.Errorf("%d changes were told", c)
		}
		for _, want := range []string{"health check fails", "health check passes again"} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("log has not one %q:\n%s", want, log.String())
			}
		}
	})
}

func TestCheckInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := newNetwork(), checked(1)
		checking(t, n, CheckerOptions{}, s)
		time.Sleep(1000 * time.Second)
		if got := n.count(s.Endpoints[0].Address); got < 95 || got > 106 {
			t.Errorf("%d probes in 100 intervals", got)
		}
	})
}

func TestChecksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := newNetwork(), checked(make([]uint32, 200)...)
		for _, e := range s.Endpoints {
			n.hang[e.Address] = true // so that all of them are due at once
		}
		checking(t, n, CheckerOptions{Concurrency: 5}, s)
		time.Sleep(time.Minute)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.most != 5 {
			t.Errorf("%d probes at a time", n.most)
		}
		if len(n.dialled) != 200 {
			t.Errorf("%d of 200 endpoints were probed", len(n.dialled))
		}
	})
}

func TestChecksFollowSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, s := newNetwork(), checked(1, 1)
		b, store := checking(t, n, CheckerOptions{}, s)
		first, second := s.Endpoints[0].Address, s.Endpoints[1].Address
		n.set(n.down, first, true)
		time.Sleep(time.Minute)
		synctest.Wait()

		// The endpoint stays, in a new service: so does its state.
		publish := func(services ...*mesh.Service) {
			next := mesh.Build(mesh.BuildInput{Services: services, Previous: store.Load()})
			store.Publish(next)
			b.Update(next)
			synctest.Wait()
		}
		next := checked(1)
		publish(next)
		if e := b.Summary(next).Endpoints[0]; e.Check != "failing" {
			t.Errorf("after a change: %+v", e)
		}
		before, gone := n.count(first), n.count(second)
		time.Sleep(time.Minute)
		if n.count(first) == before || n.count(second) != gone {
			t.Errorf("probes of the one that stays %d → %d, of the one that is gone %d → %d", before, n.count(first), gone, n.count(second))
		}

		// Without a check there is none, and the endpoint is usable.
		plain := weighted("", 1)
		publish(plain)
		before = n.count(first)
		time.Sleep(time.Minute)
		if n.count(first) != before || !b.Summary(plain).Endpoints[0].Usable || mustPick(t, b, plain).Panic {
			t.Error("checked although the service has no check")
		}
		publish()
		if len(b.checks) != 0 {
			t.Errorf("%d checks of no service", len(b.checks))
		}
		// And back again, from the beginning.
		publish(next)
		time.Sleep(time.Minute)
		if b.Summary(next).Endpoints[0].Check != "failing" {
			t.Error("not checked again")
		}
	})
}

// TestProbeHTTP speaks to a real server.
func TestProbeHTTP(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "web" {
			t.Errorf("host %q", r.Host)
		}
		switch r.URL.Path {
		case "/slow":
			<-release
		case "/found":
			w.WriteHeader(http.StatusFound)
		case "/sick":
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	defer close(release)
	addr := netip.MustParseAddrPort(server.Listener.Addr().String())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := netip.MustParseAddrPort(closed.Addr().String())
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, _ *mesh.Service, _ *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr.String())
	}
	for _, tt := range []struct {
		path string
		addr netip.AddrPort
		want string
	}{
		{"/ok", addr, ""},
		{"/found", addr, ""},
		{"", addr, ""}, // TCP
		{"/sick", addr, "status 503"},
		{"/slow", addr, "no response within 100ms"},
		{"/ok", nobody, "connection refused"},
		{"", nobody, "connection refused"},
	} {
		s := weighted("", 1)
		s.HealthCheck = &mesh.HealthCheck{HTTPPath: tt.path, Timeout: 5 * time.Second}
		if tt.path == "/slow" {
			s.HealthCheck.Timeout = 100 * time.Millisecond
		}
		err := probe{service: s, endpoint: s.Endpoints[0], addr: tt.addr, http: tt.path != "", dial: dial}.run(t.Context())
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q at %v: %v, want %q", tt.path, tt.addr, err, tt.want)
		}
	}
}

// TestProbeOddServers has servers that do not speak HTTP well.
func TestProbeOddServers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		want   string
	}{
		"no HTTP":      {"SSH-2.0-OpenSSH_9.9\r\n", "read response"},
		"nothing":      {"", "read response"},
		"endless head": {"HTTP/1.1 200 OK\r\n" + strings.Repeat("X-Y: z\r\n", 1<<14), "read response"},
		"status 100":   {"HTTP/1.1 100 Continue\r\n\r\n", "status 100"},
	} {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(server, tt.answer) // fails when the probe has seen enough
				_ = server.Close()
			}()
			s := weighted("", 1)
			s.HealthCheck = &mesh.HealthCheck{HTTPPath: "/"}
			dial := func(context.Context, *mesh.Service, *mesh.Endpoint, netip.AddrPort) (net.Conn, error) {
				return client, nil
			}
			err := probe{service: s, endpoint: s.Endpoints[0], http: true, dial: dial}.run(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", name, err)
			}
			<-done
		})
	}
	s := checked(1)
	if err := (probe{service: s}).run(t.Context()); !errors.Is(err, errNoDial) {
		t.Error(err)
	}
}

func TestSpeaksHTTP(t *testing.T) {
	ports := func(protocols ...mesh.Protocol) (out []mesh.Port) {
		for i, p := range protocols {
			out = append(out, mesh.Port{Port: uint16(i + 1), Protocol: p})
		}
		return out
	}
	for _, tt := range []struct {
		path  string
		ports []mesh.Port
		want  []bool
	}{
		{"", ports(mesh.ProtocolTCP, mesh.ProtocolHTTP), []bool{false, false}},
		{"/", ports(mesh.ProtocolTCP, mesh.ProtocolHTTP, mesh.ProtocolHTTP), []bool{false, true, true}},
		{"/", ports(mesh.ProtocolTCP, mesh.ProtocolTCP), []bool{true, false}},
	} {
		s := &mesh.Service{Ports: tt.ports, HealthCheck: &mesh.HealthCheck{HTTPPath: tt.path}}
		for i, want := range tt.want {
			if got := speaksHTTP(s, i); got != want {
				t.Errorf("%q %v, port %d: %v", tt.path, tt.ports, i, got)
			}
		}
	}
}

// TestCheckOfEachPort: one that fails is avoided, the other one is not.
func TestCheckOfEachPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := checked(1, 1)
		s.Ports = []mesh.Port{{Name: "a", Port: 1}, {Name: "b", Port: 2}}
		for _, e := range s.Endpoints {
			e.Ports = []uint16{1001, 1002}
		}
		sick := s.Endpoints[0]
		n := newNetwork()
		b := seeded()
		dial := func(ctx context.Context, svc *mesh.Service, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error) {
			if addr == netip.AddrPortFrom(sick.Address, 1002) {
				return nil, errRefused
			}
			return n.dial(ctx, svc, e, addr)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		store := discovery.NewStore(mesh.Build(mesh.BuildInput{Services: []*mesh.Service{s}}))
		go func() { NewChecker(b, CheckerOptions{Dial: dial}).Run(ctx, store); close(done) }()
		defer func() { cancel(); <-done }()
		time.Sleep(time.Minute)
		synctest.Wait()
		picked := make(map[int]map[*mesh.Endpoint]bool)
		for port := range s.Ports {
			picked[port] = make(map[*mesh.Endpoint]bool)
			for range 50 {
				p, ok := b.Pick(s, port, nil)
				if !ok || p.Panic {
					t.Fatalf("port %d: picked %v, panic %v", port, ok, p.Panic)
				}
				picked[port][p.Endpoint] = true
			}
		}
		if !picked[0][sick] || picked[1][sick] {
			t.Errorf("port a goes to it: %v; port b, which fails: %v", picked[0][sick], picked[1][sick])
		}
		if e := b.Summary(s).Endpoints[0]; e.Check != "failing" || !strings.Contains(e.CheckError, "port 1002: connect") {
			t.Errorf("summary %+v", e)
		}
	})
}

func ExampleBalancer_Summary() {
	b, s := seeded(), weighted("", 1, 2)
	p, _ := b.Pick(s, 0, nil)
	b.Connected(p)
	sum := b.Summary(s)
	fmt.Println(sum.Service, sum.Balance, sum.Usable, len(sum.Endpoints))
	// Output: web least_request 2 2
}
