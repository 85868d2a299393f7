// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started is a running role.
type started struct {
	lines  *json.Decoder
	cancel func()
	err    chan error
}

// start runs a role until the test ends.
func start(t *testing.T, name string, args ...string) *started {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := newContext(t)
	s := &started{lines: json.NewDecoder(r), cancel: cancel, err: make(chan error, 1)}
	go func() {
		err := roles[name].run(ctx, args, &reporter{out: w})
		_ = w.Close()
		s.err <- err
	}()
	t.Cleanup(func() {
		cancel()
		_, _ = io.Copy(io.Discard, r)
		if err := <-s.err; err != nil && !errors.Is(err, errReported) {
			t.Errorf("%s: %v", name, err)
		}
	})
	return s
}

func (s *started) next(t *testing.T, v any) {
	t.Helper()
	if err := s.lines.Decode(v); err != nil {
		t.Fatalf("read report: %v", err)
	}
}

// serveAll starts a server of every kind and returns the addresses.
func serveAll(t *testing.T, more ...string) map[string]string {
	t.Helper()
	args := append([]string{"-name", "srv"}, more...)
	for _, kind := range []string{"http", "tcp", "echo", "sink", "source", "silent", "reset"} {
		args = append(args, "-"+kind, "127.0.0.1:0")
	}
	s := start(t, "serve", args...)
	var ready Ready
	s.next(t, &ready)
	addrs := map[string]string{}
	for kind, a := range ready.Listeners {
		addrs[kind] = a[0]
	}
	// Whatever it reports later is not of interest.
	go func() {
		for s.lines.Decode(new(any)) == nil {
		}
	}()
	return addrs
}

func TestCall(t *testing.T) {
	addrs := serveAll(t)
	for _, tc := range []struct {
		name string
		args []string
		peer string
	}{
		{"http", []string{"-url", "http://" + addrs["http"] + "/"}, addrs["http"]},
		{"http, fresh", []string{"-url", "http://" + addrs["http"] + "/", "-fresh"}, addrs["http"]},
		{"tcp", []string{"-tcp", addrs["tcp"]}, addrs["tcp"]},
		{"tcp, fresh", []string{"-tcp", addrs["tcp"], "-fresh"}, addrs["tcp"]},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, "call", append(tc.args, "-count", "5", "-rate", "0", "-interval", "1h", "-body", "marker")...)
			var ready Ready
			var stats Stats
			s.next(t, &ready)
			s.next(t, &stats)
			if stats.Requests != 5 || stats.Errors != 0 || stats.Servers["srv"] != 5 || stats.Peer != tc.peer {
				t.Errorf("stats: %+v", stats)
			}
			seen := stats.Seen
			if seen == nil || seen.Body != "marker" || seen.Accepted == "" || seen.Accepted != seen.Peer || seen.Local != tc.peer {
				t.Errorf("seen: %+v", seen)
			}
		})
	}
}

// TestCallEcho: messages come back as they were sent, over one connection and over
// many; a server that sends something else is noticed.
func TestCallEcho(t *testing.T) {
	addrs := serveAll(t)
	for _, tc := range []struct {
		name, addr       string
		args             []string
		requests, errors int
	}{
		{"one connection", addrs["echo"], nil, 100, 0},
		{"many", addrs["echo"], []string{"-fresh"}, 100, 0},
		{"reset", addrs["reset"], nil, 0, 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, "call", append(tc.args, "-echo", tc.addr, "-count", "100", "-rate", "0", "-interval", "1h")...)
			var ready Ready
			var stats Stats
			s.next(t, &ready)
			s.next(t, &stats)
			if stats.Requests != tc.requests || stats.Errors != tc.errors || stats.Peer != tc.addr {
				t.Errorf("stats: %+v", stats)
			}
		})
	}
	t.Run("other bytes", func(t *testing.T) {
		s := start(t, "call", "-echo", addrs["source"], "-count", "20", "-rate", "0", "-interval", "1h")
		var ready Ready
		var stats Stats
		s.next(t, &ready)
		s.next(t, &stats)
		if stats.Errors == 0 || !strings.Contains(stats.Error, errOtherBytes.Error()) {
			t.Errorf("stats: %+v", stats)
		}
	})
}

func TestCallReportsErrors(t *testing.T) {
	addrs := serveAll(t)
	for _, tc := range []struct{ name, addr, want string }{
		{"nobody listens", closedPort(t), "ECONNREFUSED"},
		{"reset", addrs["reset"], "ECONNRESET"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, "call", "-tcp", tc.addr, "-count", "2", "-rate", "0", "-interval", "1h")
			var ready Ready
			var stats Stats
			s.next(t, &ready)
			s.next(t, &stats)
			if stats.Errors != 2 || stats.Error != tc.want {
				t.Errorf("stats: %+v, want error %s", stats, tc.want)
			}
		})
	}
}

func TestDialOnce(t *testing.T) {
	addrs := serveAll(t)
	_, port, _ := net.SplitHostPort(addrs["tcp"])
	for _, tc := range []struct {
		name, stage, err string
		args             []string
	}{
		{"connects", "", "", []string{"-address", addrs["tcp"]}},
		{"answered", "", "", []string{"-address", addrs["tcp"], "-send", "x"}},
		{"by name", "", "", []string{"-address", "localhost:" + port, "-send", "x", "-bind", "127.0.0.1"}},
		{"bound", "", "", []string{"-address", addrs["tcp"], "-send", "x", "-bind", "127.0.0.9", "-device", "lo"}},
		{"mapped", "", "", []string{"-address", addrs["tcp"], "-send", "x", "-mapped"}},
		{"refused", "connect", "ECONNREFUSED", []string{"-address", closedPort(t)}},
		{"reset", "read", "ECONNRESET", []string{"-address", addrs["reset"], "-send", "x"}},
		{"silence", "read", "TIMEOUT", []string{"-address", addrs["silent"], "-send", "x", "-timeout", "1s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var d Dialed
			start(t, "dial-once", tc.args...).next(t, &d)
			if d.Stage != tc.stage || d.Error != tc.err || d.OK != (tc.err == "") {
				t.Errorf("dialed: %+v, want %q at %q", d, tc.err, tc.stage)
			}
			if d.OK && d.Peer == "" {
				t.Errorf("no peer: %+v", d)
			}
			if tc.name == "bound" && !strings.HasPrefix(d.Local, "127.0.0.9:") {
				t.Errorf("bound to %s", d.Local)
			}
		})
	}
}

func TestHalfClose(t *testing.T) {
	addrs := serveAll(t)
	c := dial(t, addrs["sink"])
	_, _ = c.Write(make([]byte, 100_000))
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || strings.TrimSpace(string(got)) != "100000" {
		t.Errorf("sink answered %q, %v", got, err)
	}
	c = dial(t, addrs["echo"])
	_, _ = io.WriteString(c, "twice")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "twice" {
		t.Errorf("echo answered %q, %v", got, err)
	}
	c = dial(t, addrs["tcp"])
	_, _ = io.WriteString(c, "HALFCLOSE\n")
	if got, err := io.ReadAll(c); err != nil || len(got) != 0 {
		t.Errorf("half-closed server sent %q, %v", got, err)
	}
	if _, err := io.WriteString(c, "still open\n"); err != nil {
		t.Errorf("write to a half-closed server: %v", err)
	}
}

func TestResetOnDemand(t *testing.T) {
	c := dial(t, serveAll(t)["tcp"])
	_, _ = io.WriteString(c, "RESET\n")
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read after RESET: %v", err)
	}
}

func TestSource(t *testing.T) {
	c := dial(t, serveAll(t)["source"])
	if n, err := io.CopyN(io.Discard, c, 1<<20); n != 1<<20 {
		t.Errorf("source sent %d bytes, %v", n, err)
	}
}

func TestMainStopsAtSIGTERM(t *testing.T) {
	r, w := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		if status := Main([]string{"wait"}, w, io.Discard); status != ExitOK {
			t.Errorf("exit status %d", status)
		}
		_ = w.Close()
	})
	var ready Ready
	if err := json.NewDecoder(r).Decode(&ready); err != nil || ready.Event != EventReady {
		t.Fatalf("ready: %+v, %v", ready, err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"dance"}, {"serve"}, {"serve", "-x"}, {"call"}, {"call", "-url", "u", "-tcp", "t"}, {"call", "-tcp", "t", "-echo", "e"}, {"dial-once"}, {"hold"}, {"converse"}, {"wait", "more"}} {
		var out, errs bytes.Buffer
		if status := Main(args, &out, &errs); status != ExitUsage || errs.Len() == 0 {
			t.Errorf("%q: exit status %d, says %q", args, status, errs.String())
		}
	}
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// closedPort returns an address that refuses connections: the port is bound,
// so that nobody else gets it, and not listened on.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return "127.0.0.1:" + strconv.Itoa(sa.(*unix.SockaddrInet4).Port)
}

func newContext(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}

func TestHold(t *testing.T) {
	addrs := serveAll(t)
	for _, tc := range []struct {
		name   string
		args   []string
		states []string
		err    string
	}{
		{"refused", []string{"-address", closedPort(t)}, []string{HeldRefused}, "ECONNREFUSED"},
		{"answered", []string{"-address", addrs["tcp"], "-send", "x"}, []string{HeldConnected, HeldAnswered}, ""},
		{"reset", []string{"-address", addrs["reset"], "-send", "x"}, []string{HeldConnected, HeldEnded}, "ECONNRESET"},
		{"closed", []string{"-address", addrs["tcp"], "-send", "HALFCLOSE"}, []string{HeldConnected, HeldEnded}, "EOF"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, "hold", tc.args...)
			s.next(t, new(Ready))
			var h Held
			for _, state := range tc.states {
				if s.next(t, &h); h.State != state {
					t.Fatalf("held: %+v, want %s", h, state)
				}
			}
			if h.Error != tc.err || tc.err == "" && h.Server != "srv" {
				t.Errorf("held: %+v, want error %q", h, tc.err)
			}
		})
	}
}

func TestConverse(t *testing.T) {
	addrs := serveAll(t)
	for _, tc := range []struct{ name, kind, steps, step, err, rest string }{
		{"half-close", "echo", "send twice,shut,end", "", "", "twice\n"},
		{"half-closed by the server", "tcp", "send HALFCLOSE,end,send more", "", "", ""},
		{"reset", "tcp", "send x,line,reset", "", "", ""},
		{"reset by the server", "tcp", "send RESET,end", "end", "ECONNRESET", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c Conversed
			start(t, "converse", "-address", addrs[tc.kind], "-steps", tc.steps).next(t, &c)
			if c.OK != (tc.err == "") || c.Step != tc.step || c.Error != tc.err || c.Rest != tc.rest {
				t.Errorf("conversed: %+v", c)
			}
		})
	}
}

func TestServerReportsHowClientsEnd(t *testing.T) {
	s := start(t, "serve", "-tcp", "127.0.0.1:0", "-report-closed")
	var ready Ready
	s.next(t, &ready)
	for steps, want := range map[string]string{"send x,line,reset": "ECONNRESET", "send x,line,shut,end": "EOF"} {
		start(t, "converse", "-address", ready.Listeners["tcp"][0], "-steps", steps)
		var c Closed
		if s.next(t, &c); c.Error != want || c.Received != 2 {
			t.Errorf("after %q: %+v, want %s", steps, c, want)
		}
	}
}
