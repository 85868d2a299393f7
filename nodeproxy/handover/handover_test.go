// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleEnv makes this program a successor that behaves in some way.
const roleEnv = "HANDOVER_TEST_ROLE"

var roles = map[string]func() int{
	"follow": follow,
	"fail": func() int {
		p, _ := FromEnvironment()
		p.Fail(errors.New("no such file"))
		return 1
	},
	"end":  func() int { return 3 },
	"hang": func() int { select {} },
	"mumble": func() int {
		p, _ := FromEnvironment()
		_, _ = p.conn.Write([]byte("hello"))
		select {}
	},
}

const patience = 2 * time.Minute

// follow takes over, answers one connection on each socket that it was given,
// and returns one as a stray.
func follow() int {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := FromEnvironment()
	if err != nil {
		return 10
	}
	offer, err := p.Receive(ctx)
	if err != nil || offer.Generation != 7 || offer.Files["note"] == nil {
		return 11
	}
	if note, err := io.ReadAll(offer.Files["note"]); err != nil || string(note) != "hello" {
		return 12
	}
	address, path := os.Getenv("ADDRESS"), os.Getenv("SOCKET")
	ln, err := offer.Sockets.Listener("here", "tcp", address)
	if err != nil || ln == nil {
		return 13
	}
	pc, err := offer.Sockets.PacketConn("here", address)
	if err != nil || pc == nil {
		return 14
	}
	un, err := offer.Sockets.Listener("", "unix", path)
	if err != nil || un == nil {
		return 15
	}
	if left := offer.Sockets.Close(); len(left) != 300 {
		return 16
	}
	if p.Ready(ctx, Serving{Apart: true}) != nil {
		return 17
	}
	mark := func(fd int, client netip.AddrPort) error {
		if client.Port() != 4711 {
			return fmt.Errorf("client %s", client)
		}
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 99)
	}
	if p.Serve(ctx, Serving{Version: "two", Apart: true}, mark) != nil {
		return 18
	}
	c, err := ln.Accept()
	if err != nil {
		return 19
	}
	fmt.Fprint(c, "new")
	c.Close()
	c, err = un.Accept()
	if err != nil {
		return 20
	}
	raw, _ := c.(*net.UnixConn).SyscallConn()
	_ = raw.Control(func(fd uintptr) { err = p.Stray(int(fd), 42, netip.MustParseAddrPort("192.0.2.1:80")) })
	c.Close()
	<-p.Gone()
	if err != nil || p.Connections() != 5 {
		return 21
	}
	return 0
}

func startRole(t *testing.T, role string, stray Stray) *Successor {
	t.Helper()
	t.Setenv(roleEnv, role)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(Program{path: exe}, stray)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// fdOf returns the descriptor of c, which stays c's.
func fdOf(t *testing.T, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := -1
	if err := raw.Control(func(fd uintptr) { got = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return got
}

// samePort listens on one port by TCP and by UDP. What is free of the one may be
// somebody's of the other.
func samePort(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return ln, pc
		}
		ln.Close()
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// TestHandOver: everything passes to a process that then answers what had been
// waiting in this one's accept queues.
func TestHandOver(t *testing.T) {
	ln, pc := samePort(t)
	defer ln.Close()
	defer pc.Close()
	path := filepath.Join(t.TempDir(), "admin.sock")
	un, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer un.Close()
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(note)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	t.Setenv("ADDRESS", ln.Addr().String())
	t.Setenv("SOCKET", path)
	strays := make(chan int, 1)
	s := startRole(t, "follow", func(fd int, netns uint64, client netip.AddrPort) {
		if netns != 42 || client.String() != "192.0.2.1:80" {
			t.Errorf("stray of namespace %d from %s", netns, client)
		}
		strays <- fd
	})
	sockets := []Socket{
		{"here", fdOf(t, ln.(*net.TCPListener))}, {"here", fdOf(t, pc.(*net.UDPConn))}, {"", fdOf(t, un.(*net.UnixListener))},
	}
	for range 300 { // more than a message can hold
		sockets = append(sockets, Socket{"elsewhere", sockets[0].FD})
	}
	if err := unix.Kill(s.PID(), 0); s.PID() <= 1 || err != nil {
		t.Errorf("pid %d: %v", s.PID(), err)
	}
	if err := s.Offer(Offer{Generation: 7}, sockets, map[string]int{"note": int(file.Fd())}); err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	if apart, err := s.AwaitReady(ctx); err != nil || !apart {
		t.Fatalf("apart %v, %v", apart, err)
	}
	serving, err := s.Switch(ctx)
	if err != nil || serving != (Serving{Version: "two", Apart: true}) {
		t.Fatalf("%+v, %v", serving, err)
	}
	if err := s.Mark(sockets[0].FD, netip.MustParseAddrPort("192.0.2.1:4711")); err != nil {
		t.Error(err)
	}
	if mark, err := unix.GetsockoptInt(sockets[0].FD, unix.SOL_SOCKET, unix.SO_MARK); err != nil || mark != 99 {
		t.Errorf("mark %d, %v", mark, err)
	}
	if err := s.Mark(sockets[0].FD, netip.AddrPort{}); err == nil {
		t.Error("what could not be marked is reported as marked")
	}
	if err := s.Lead(); err != nil {
		t.Fatal(err)
	}
	_ = client.SetDeadline(time.Now().Add(patience))
	if text, err := io.ReadAll(client); err != nil || string(text) != "new" {
		t.Errorf("answer %q, %v", text, err)
	}
	admin, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	stray := <-strays
	if _, err := unix.Write(stray, []byte("back")); err != nil {
		t.Error(err)
	}
	_ = unix.Close(stray)
	_ = admin.SetDeadline(time.Now().Add(patience))
	if text, err := io.ReadAll(admin); err != nil || string(text) != "back" {
		t.Errorf("answer %q, %v", text, err)
	}
	if err := s.Draining(5); err != nil {
		t.Error(err)
	}
	s.Close()
	<-s.Gone()
}

// TestSuccessorFails in every way in which a new binary can.
func TestSuccessorFails(t *testing.T) {
	for _, tc := range []struct {
		role   string
		within time.Duration
		want   error
		says   string
	}{
		{role: "fail", within: patience, says: "no such file"},
		{role: "end", within: patience, want: ErrGone},
		{role: "hang", within: time.Second, want: ErrTimeout},
		{role: "mumble", within: patience, want: errMalformed},
	} {
		t.Run(tc.role, func(t *testing.T) {
			s := startRole(t, tc.role, nil)
			ctx, cancel := context.WithTimeout(context.Background(), tc.within)
			defer cancel()
			err := errors.Join(s.Offer(Offer{}, nil, nil))
			if err == nil || tc.want == nil {
				_, err = s.AwaitReady(ctx)
			}
			if tc.want != nil && !errors.Is(err, tc.want) && !errors.Is(err, unix.EPIPE) || tc.says != "" && (err == nil || err.Error() != tc.says) {
				t.Errorf("error %v", err)
			}
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
			<-s.Gone()
		})
	}
}

func TestNotExecutable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	for _, tc := range []struct {
		name string
		mode os.FileMode
		want error
	}{{"no permission", 0o600, os.ErrPermission}, {"no program", 0o755, unix.ENOEXEC}} {
		if err := os.WriteFile(path, []byte("\x00"), tc.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tc.mode); err != nil {
			t.Fatal(err)
		}
		if s, err := Start(Program{path: path}, nil); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v", tc.name, s, err)
		}
	}
}

func TestProgramChanged(t *testing.T) {
	p, err := ThisProgram()
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := p.Changed(); changed || err != nil {
		t.Errorf("changed %v, %v", changed, err)
	}
	p.path = "/bin/sh"
	if changed, err := p.Changed(); !changed || err != nil {
		t.Errorf("changed %v, %v", changed, err)
	}
	p.path = "/nowhere"
	if _, err := p.Changed(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv(environment, "x")
	if p, err := FromEnvironment(); p != nil || err == nil {
		t.Errorf("%v, %v", p, err)
	}
	if p, err := FromEnvironment(); p != nil || err != nil {
		t.Errorf("asked again: %v, %v", p, err)
	}
	got := without([]string{"A=1", "WATCHDOG_PID=3", "WATCHDOG_USEC=4", "LISTEN_FDS=2"}, forOne)
	if len(got) != 2 || got[1] != "WATCHDOG_USEC=4" {
		t.Errorf("environment %q", got)
	}
}

func TestSockets(t *testing.T) {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	fd, err := Duplicate(fdOf(t, ln.(*net.TCPListener)))
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Duplicate(int(file.Fd()))
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSockets([]Socket{{"one", fd}, {"none", other}})
	if !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("error %v", err)
	}
	for _, wrong := range [][3]string{
		{"two", "tcp", fmt.Sprintf(":%d", port)},
		{"one", "udp", fmt.Sprintf(":%d", port)},
		{"one", "tcp", fmt.Sprintf("127.0.0.1:%d", port)},
	} {
		if ln, err := s.Listener(wrong[0], wrong[1], wrong[2]); ln != nil || err != nil {
			t.Errorf("%v: %v, %v", wrong, ln, err)
		}
	}
	if s.Peek("one") != fd || s.Peek("two") != -1 || len(s.Scopes()) != 1 {
		t.Errorf("scopes %v", s.Scopes())
	}
	again, err := s.Listener("one", "tcp", fmt.Sprintf(":%d", port))
	if again == nil || err != nil {
		t.Fatalf("%v, %v", again, err)
	}
	again.Close()
	if left := s.Close(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	var none *Sockets
	if none.Close() != nil || none.Scopes() != nil || none.Peek("") != -1 {
		t.Error("a nil set is not empty")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"offer","offer":{"pid":1,"bypassed":["a"]},"names":["lock"]}`))
	f.Add([]byte(`{"kind":"mark","id":3,"client":"192.0.2.1:80"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if m, err := decode(text); err == nil && m.Kind == "" {
			t.Error("a message without a kind")
		}
	})
}

// TestLastWords: what a process said is heard though it ended with something
// unread, whoever hears of its end first.
func TestLastWords(t *testing.T) {
	for _, sends := range []int{0, 1, 2} {
		t.Run(fmt.Sprintf("after %d", sends), func(t *testing.T) { testLastWords(t, sends) })
	}
}

func testLastWords(t *testing.T, sends int) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := newConn(pair[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		ours.send(message{Kind: kindPrepare}),
		theirs.send(message{Kind: kindFailed, Error: "no such file"}),
		theirs.Close(),
	); err != nil {
		t.Fatal(err)
	}
	for range sends {
		if err := ours.send(message{Kind: kindPrepare}); !errors.Is(err, ErrGone) {
			t.Errorf("a message to nobody: %v", err)
		}
	}
	m, _, err := ours.receive()
	if err != nil || m.Error != "no such file" {
		t.Errorf("message %+v, %v", m, err)
	}
	if _, _, err := ours.receive(); !isEnd(err) {
		t.Errorf("then %v, want the end", err)
	}
}
