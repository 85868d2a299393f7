// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// listenVariable makes this test binary listen instead of testing.
const listenVariable = "MESHPROXY_SOCKDIAG_LISTEN"

func TestMain(m *testing.M) {
	if address := os.Getenv(listenVariable); address != "" {
		listenUntilEOF(address)
		return
	}
	goleak.VerifyTestMain(m)
}

func listenUntilEOF(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// place is a namespace with a socket to ask about it.
type place struct {
	*Socket
	ns *netns.Handle
}

func newPlace(t *testing.T) place {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	sock, err := netns.Socket(ns.FD(), unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
	s, err := Open(ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return place{s, ns}
}

func (p place) listen(t *testing.T, network, address string, control netns.Control) netip.AddrPort {
	t.Helper()
	l, err := netns.Listen(context.Background(), p.ns.FD(), network, address, control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// connect makes a connection with a socket of the given family and returns the
// socket of the client.
func (p place) connect(t *testing.T, family int, to netip.AddrPort) int {
	t.Helper()
	sock := -1
	err := netns.Do(p.ns.FD(), func() (err error) {
		if sock, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if family == unix.AF_INET {
			return unix.Connect(sock, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}
		return unix.Connect(sock, &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	})
	if sock >= 0 {
		t.Cleanup(func() { _ = unix.Close(sock) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return sock
}

func cookie(t *testing.T, sock int) uint64 {
	t.Helper()
	c, err := unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestListeners(t *testing.T) {
	own, err := ownCgroup()
	if err != nil {
		t.Fatal(err)
	}
	bindToLo := func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), "lo") }); cerr != nil {
			return cerr
		}
		return err
	}
	v4, v6, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.9")
	tests := []struct {
		name, network, address string
		control                netns.Control
		want                   Listener
		dial                   string
		serves, refuses        []netip.Addr
	}{
		{
			"one IPv4 address", "tcp4", "127.0.0.1", nil,
			Listener{Address: netip.MustParseAddrPort("127.0.0.1:0")},
			"127.0.0.1",
			[]netip.Addr{v4, netip.AddrFrom16(v4.As16())},
			[]netip.Addr{other, v6},
		},
		{
			"all of IPv4", "tcp4", "0.0.0.0", nil,
			Listener{Address: netip.MustParseAddrPort("0.0.0.0:0")},
			"127.0.0.1",
			[]netip.Addr{v4, other},
			[]netip.Addr{v6},
		},
		{
			"both families", "tcp", "[::]", nil,
			Listener{Address: netip.MustParseAddrPort("[::]:0"), IPv6: true},
			"127.0.0.1",
			[]netip.Addr{v4, v6},
			nil,
		},
		{
			"all of IPv6", "tcp6", "[::]", nil,
			Listener{Address: netip.MustParseAddrPort("[::]:0"), IPv6: true, V6Only: true},
			"::1",
			[]netip.Addr{v6},
			[]netip.Addr{v4},
		},
		{
			"one IPv6 address", "tcp6", "[::1]", nil,
			Listener{Address: netip.MustParseAddrPort("[::1]:0"), IPv6: true, V6Only: true},
			"::1",
			[]netip.Addr{v6},
			[]netip.Addr{v4},
		},
		{
			"device", "tcp4", "127.0.0.1", bindToLo,
			Listener{Address: netip.MustParseAddrPort("127.0.0.1:0"), Ifindex: 1},
			"127.0.0.1",
			[]netip.Addr{v4},
			nil,
		},
	}
	p := newPlace(t)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := p.listen(t, tt.network, tt.address+":0", tt.control)
			found, err := p.LocalBind(addr.Port())
			if err != nil || len(found) != 1 {
				t.Fatalf("LocalBind = %+v, %v", found, err)
			}
			got := found[0]
			if got.Cookie == 0 || got.Inode == 0 {
				t.Errorf("no cookie or inode: %+v", got)
			}
			tt.want.Address = netip.AddrPortFrom(tt.want.Address.Addr(), addr.Port())
			tt.want.CgroupID, tt.want.Cookie, tt.want.Inode = own, got.Cookie, got.Inode
			if got != tt.want {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if want := netip.AddrPortFrom(netip.MustParseAddr(tt.dial), addr.Port()); got.DialAddress() != want {
				t.Errorf("DialAddress = %v, want %v", got.DialAddress(), want)
			}
			for _, a := range tt.serves {
				if !got.Serves(a) {
					t.Errorf("does not serve %v", a)
				}
			}
			for _, a := range tt.refuses {
				if got.Serves(a) {
					t.Errorf("serves %v", a)
				}
			}
			// The other subtests' listeners are closed by now.
			if all, err := p.Listeners(); err != nil || len(all) != 1 {
				t.Errorf("%d: Listeners = %+v, %v", i, all, err)
			}
		})
	}
}

func ownCgroup() (uint64, error) {
	root, err := cgroup.Root()
	if err != nil {
		return 0, err
	}
	self, err := cgroup.Self()
	if err != nil {
		return 0, err
	}
	return cgroup.ID(filepath.Join(root, self))
}

// TestListenerOfAnotherCgroup asks for the listener of a process that started
// before anybody looked.
func TestListenerOfAnotherCgroup(t *testing.T) {
	root, err := cgroup.Root()
	if err != nil {
		t.Fatal(err)
	}
	const prefix = "meshproxy-sockdiag-test-"
	// What a crashed run left behind.
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
	id, err := cgroup.ID(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	p := newPlace(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), listenVariable+"=127.0.0.1:0")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(p.ns.FD(), cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	found, err := p.Listeners()
	if err != nil || len(found) != 1 {
		t.Fatalf("Listeners = %+v, %v", found, err)
	}
	if l := found[0]; l.CgroupID != id || l.Address.String() != strings.TrimSpace(line) {
		t.Errorf("listener %+v, want cgroup %d, address %s", l, id, line)
	}
}

// connections of each kind that the kernel stores differently.
var kinds = []struct {
	name   string
	listen string
	family int
	dial   netip.Addr // what the client's socket is told
	shown  netip.Addr
	ipv6   bool // the client's socket
}{
	{"IPv4", "127.0.0.1:0", unix.AF_INET, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1"), false},
	{"IPv6", "[::1]:0", unix.AF_INET6, netip.MustParseAddr("::1"), netip.MustParseAddr("::1"), true},
	{"IPv4-mapped", "127.0.0.1:0", unix.AF_INET6, netip.MustParseAddr("::ffff:127.0.0.1"), netip.MustParseAddr("127.0.0.1"), true},
}

func TestConnections(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			p := newPlace(t)
			addr := p.listen(t, "tcp", kind.listen, nil)
			sock := p.connect(t, kind.family, netip.AddrPortFrom(kind.dial, addr.Port()))

			all, err := p.Connections(Filter{})
			if err != nil || len(all) != 2 {
				t.Fatalf("Connections = %+v, %v, want both ends", all, err)
			}
			prefix := netip.PrefixFrom(kind.shown, kind.shown.BitLen())
			wrong := netip.PrefixFrom(kind.shown.Next(), kind.shown.BitLen())
			for _, tt := range []struct {
				name   string
				filter Filter
				want   int
			}{
				{"remote port", Filter{RemotePort: addr.Port()}, 1},
				{"local port", Filter{LocalPort: addr.Port()}, 1},
				{"remote prefix", Filter{Remote: prefix}, 2},
				{"remote prefix and port", Filter{Remote: prefix, RemotePort: addr.Port()}, 1},
				{"both sides", Filter{Local: prefix, Remote: prefix, RemotePort: addr.Port()}, 1},
				{"both ports", Filter{LocalPort: addr.Port(), RemotePort: addr.Port()}, 0},
				{"other prefix", Filter{Remote: wrong}, 0},
				{"other local prefix", Filter{Local: wrong, RemotePort: addr.Port()}, 0},
				{"other state", Filter{States: StateSynSent}, 0},
				{"listeners never", Filter{States: StateListen}, 0},
			} {
				if got, err := p.Connections(tt.filter); err != nil || len(got) != tt.want {
					t.Errorf("%s: %+v, %v, want %d", tt.name, got, err, tt.want)
				}
			}
			found, err := p.Connections(Filter{RemotePort: addr.Port()})
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			c := found[0]
			if c.Cookie != cookie(t, sock) || c.Remote != netip.AddrPortFrom(kind.shown, addr.Port()) ||
				c.Local.Addr() != kind.shown || c.IPv6 != kind.ipv6 || c.State != StateEstablished {
				t.Errorf("connection %+v", c)
			}
		})
	}
}

func TestDestroy(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			p := newPlace(t)
			if err := p.ProbeDestroy(); err != nil {
				t.Fatal(err)
			}
			addr := p.listen(t, "tcp", kind.listen, nil)
			sock := p.connect(t, kind.family, netip.AddrPortFrom(kind.dial, addr.Port()))
			stays := p.connect(t, kind.family, netip.AddrPortFrom(kind.dial, addr.Port()))
			found, err := p.Connections(Filter{RemotePort: addr.Port()})
			if err != nil || len(found) != 2 {
				t.Fatal(found, err)
			}
			c := found[0]
			if c.Cookie != cookie(t, sock) {
				c = found[1]
			}

			other := c
			other.Cookie++
			if err := p.Destroy(&other); !errors.Is(err, ErrGone) {
				t.Errorf("with another cookie: %v", err)
			}
			other.Cookie = 0
			if err := p.Destroy(&other); !errors.Is(err, ErrNeedsCookie) {
				t.Errorf("without a cookie: %v", err)
			}
			if err := p.Destroy(&c); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Read(sock, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("read from the destroyed connection: %v", err)
			}
			if err := p.Destroy(&c); !errors.Is(err, ErrGone) {
				t.Errorf("again: %v", err)
			}
			if _, err := unix.Write(stays, []byte("x")); err != nil {
				t.Errorf("the other connection: %v", err)
			}
			if l, err := p.LocalBind(addr.Port()); err != nil || len(l) != 1 {
				t.Errorf("the listener: %+v, %v", l, err)
			}
		})
	}
}

// TestDestroySparesListener destroys the server's end of a connection that has
// gone meanwhile.
func TestDestroySparesListener(t *testing.T) {
	p := newPlace(t)
	addr := p.listen(t, "tcp", "127.0.0.1:0", nil)
	p.connect(t, unix.AF_INET, addr)
	found, err := p.Connections(Filter{LocalPort: addr.Port()})
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	for i, want := range []error{nil, ErrGone} {
		if err := p.Destroy(&found[0]); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", i, err, want)
		}
	}
	if l, err := p.LocalBind(addr.Port()); err != nil || len(l) != 1 {
		t.Errorf("the listener: %+v, %v", l, err)
	}
}

func TestManyConnections(t *testing.T) {
	const n = 500
	p := newPlace(t)
	addr := p.listen(t, "tcp", "127.0.0.1:0", nil)
	seen := map[uint64]bool{}
	for range n {
		seen[cookie(t, p.connect(t, unix.AF_INET, addr))] = true
	}
	start := time.Now()
	found, err := p.Connections(Filter{RemotePort: addr.Port()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d connections in %v", len(found), time.Since(start))
	for _, c := range found {
		delete(seen, c.Cookie)
	}
	if len(found) != n || len(seen) != 0 {
		t.Errorf("found %d of %d connections, %d missing", len(found), n, len(seen))
	}
}

func TestDestroyErrors(t *testing.T) {
	for in, want := range map[error]error{
		unix.ENOENT: ErrGone, unix.ESTALE: ErrGone, unix.EOPNOTSUPP: ErrNoDestroy,
		unix.EINVAL: ErrNoDestroy, unix.EPERM: unix.EPERM, nil: nil,
	} {
		if got := destroyError(in); !errors.Is(got, want) {
			t.Errorf("destroyError(%v) = %v, want %v", in, got, want)
		}
	}
}

func TestParseShortMessages(t *testing.T) {
	whole := make([]byte, sizeofMessage, sizeofMessage+8)
	whole[0] = unix.AF_INET
	for n := range sizeofMessage {
		if _, err := parse(whole[:n]); err == nil {
			t.Errorf("%d bytes are parsed", n)
		}
	}
	if _, err := parse(whole); err != nil {
		t.Error(err)
	}
	for _, size := range []uint16{0, 3, 5, 0xffff} {
		attr := native.AppendUint16(whole, size)
		attr = native.AppendUint16(attr, 1)
		if _, err := parse(attr); !errors.Is(err, errShort) {
			t.Errorf("attribute of size %d in 4 bytes: %v", size, err)
		}
	}
}
