// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// roleEnv makes the test binary play one of the roles instead of testing.
const roleEnv = "MESHPROXY_SOCKMAP_ROLE"

var roles = map[string]func(){"actor": act, "owner": ownCapture}

// actor is a process in a cgroup and a network namespace that makes the system
// calls it is told to.
type actor struct {
	t     *testing.T
	cmd   *exec.Cmd
	pidfd int
	in    *json.Encoder
	out   *json.Decoder
	stdin io.Closer
}

type call struct {
	Op           string
	FD           int
	Domain, Type int
	Protocol     int
	Addr         netip.AddrPort
	Data         string
}

type reply struct {
	FD    int
	Addr  netip.AddrPort
	Data  string
	Errno syscall.Errno
}

func startActor(t *testing.T, cgroupDir string, ns *netns.Handle, uid uint32) *actor {
	t.Helper()
	dir, err := os.Open(cgroupDir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	a := &actor{t: t, cmd: exec.Command("/proc/self/exe"), pidfd: -1}
	// Its sockets have time-outs, and calls on those aren't restarted after a signal:
	// the runtime is not to send itself any.
	a.cmd.Env = playing("actor", "GODEBUG=asyncpreemptoff=1")
	a.cmd.Stderr = os.Stderr
	a.cmd.SysProcAttr = &syscall.SysProcAttr{
		UseCgroupFD: true,
		CgroupFD:    int(dir.Fd()),
		PidFD:       &a.pidfd,
		Credential:  &syscall.Credential{Uid: uid, Gid: uid},
	}
	in, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(ns.FD(), a.cmd.Start); err != nil {
		t.Fatal(err)
	}
	a.in, a.out, a.stdin = json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out)), in
	t.Cleanup(a.stop)
	return a
}

// stop ends the actor and waits for it.
func (a *actor) stop() {
	if a.cmd.ProcessState != nil {
		return
	}
	a.stdin.Close()
	wait(a.t, a.cmd)
	unix.Close(a.pidfd)
}

// wait waits for the end of a process that plays a role. It may have been killed,
// but not have ended itself for something that it found: the race detector's status
// is 66.
func wait(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() > 0 {
		t.Errorf("%s: %v", cmd.Env[len(cmd.Env)-1], err)
	}
}

// playing is the environment of such a process: one that is killed some day has to
// end when a race is found.
func playing(role string, more ...string) []string {
	return append(append(os.Environ(), more...), "GORACE=halt_on_error=1 atexit_sleep_ms=0", roleEnv+"="+role)
}

// kill ends it as SIGKILL does.
func (a *actor) kill() {
	_ = a.cmd.Process.Kill()
	a.stop()
}

func (a *actor) do(c call) (reply, error) {
	a.t.Helper()
	var r reply
	if err := a.in.Encode(c); err != nil {
		a.t.Fatalf("%s: %v", c.Op, err)
	}
	if err := a.out.Decode(&r); err != nil {
		a.t.Fatalf("%s: %v", c.Op, err)
	}
	if r.Errno != 0 {
		return r, r.Errno
	}
	return r, nil
}

func (a *actor) must(c call) reply {
	a.t.Helper()
	r, err := a.do(c)
	if err != nil {
		a.t.Fatalf("%+v: %v", c, err)
	}
	return r
}

func (a *actor) socket(domain, typ int) int {
	a.t.Helper()
	return a.must(call{Op: "socket", Domain: domain, Type: typ}).FD
}

func (a *actor) connect(fd int, addr string) error {
	a.t.Helper()
	_, err := a.do(call{Op: "connect", FD: fd, Addr: netip.MustParseAddrPort(addr)})
	return err
}

// dial connects a new TCP socket of the address's family.
func (a *actor) dial(addr string) (int, error) {
	a.t.Helper()
	fd := a.socket(domainOf(addr), unix.SOCK_STREAM)
	return fd, a.connect(fd, addr)
}

func domainOf(addr string) int {
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// listen listens on a new TCP socket.
func (a *actor) listen(addr string) int {
	a.t.Helper()
	fd := a.socket(domainOf(addr), unix.SOCK_STREAM)
	a.must(call{Op: "bind", FD: fd, Addr: netip.MustParseAddrPort(addr)})
	a.must(call{Op: "listen", FD: fd})
	return fd
}

func (a *actor) bind(fd int, addr string) error {
	a.t.Helper()
	_, err := a.do(call{Op: "bind", FD: fd, Addr: netip.MustParseAddrPort(addr)})
	return err
}

func (a *actor) accept(fd int) (int, netip.AddrPort) {
	a.t.Helper()
	r := a.must(call{Op: "accept", FD: fd})
	return r.FD, r.Addr
}

func (a *actor) peer(fd int) netip.AddrPort {
	a.t.Helper()
	return a.must(call{Op: "getpeername", FD: fd}).Addr
}

func (a *actor) local(fd int) netip.AddrPort {
	a.t.Helper()
	return a.must(call{Op: "getsockname", FD: fd}).Addr
}

func (a *actor) close(fd int) {
	a.t.Helper()
	a.must(call{Op: "close", FD: fd})
}

// with calls fn with a descriptor of this process for the actor's socket.
func (a *actor) with(fd int, fn func(fd int) error) {
	a.t.Helper()
	mine, err := unix.PidfdGetfd(a.pidfd, fd, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	defer unix.Close(mine)
	if err := fn(mine); err != nil {
		a.t.Fatal(err)
	}
}

// act is the actor's side. One request after the other: no goroutines.
func act() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var c call
		if err := in.Decode(&c); err != nil {
			return
		}
		var r reply
		if err := c.run(&r); err != nil && !errors.As(err, &r.Errno) {
			fatal(err)
		}
		if err := out.Encode(r); err != nil {
			return
		}
	}
}

func (c *call) run(r *reply) (err error) {
	switch c.Op {
	case "socket":
		if r.FD, err = unix.Socket(c.Domain, c.Type, c.Protocol); err != nil {
			return err
		}
		// A test that goes wrong must not wait for ever.
		limit := unix.Timeval{Sec: 60}
		_ = unix.SetsockoptInt(r.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		_ = unix.SetsockoptTimeval(r.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
		return unix.SetsockoptTimeval(r.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	case "bind":
		return unix.Bind(c.FD, sockaddr(c.FD, c.Addr))
	case "listen":
		return unix.Listen(c.FD, 1024)
	case "connect":
		err := unix.Connect(c.FD, sockaddr(c.FD, c.Addr))
		if !errors.Is(err, unix.EINPROGRESS) {
			return err
		}
		if err := patiently.await(c.FD, unix.POLLOUT); err != nil {
			return err
		}
		failed, err := unix.GetsockoptInt(c.FD, unix.SOL_SOCKET, unix.SO_ERROR)
		return errors.Join(err, none(syscall.Errno(failed)))
	case "disconnect":
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(c.FD), ptr(&unspec), 16)
		return none(errno)
	case "accept":
		var sa unix.Sockaddr
		r.FD, sa, err = unix.Accept4(c.FD, c.Type)
		r.Addr = addrPort(sa)
		return err
	case "getpeername", "getsockname":
		name := unix.Getpeername
		if c.Op == "getsockname" {
			name = unix.Getsockname
		}
		sa, err := name(c.FD)
		r.Addr = addrPort(sa)
		return err
	case "close":
		return unix.Close(c.FD)
	case "device":
		return unix.BindToDevice(c.FD, c.Data)
	case "getdevice":
		r.Data, err = unix.GetsockoptString(c.FD, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
		return err
	case "sendto":
		return unix.Sendto(c.FD, []byte(c.Data), 0, sockaddr(c.FD, c.Addr))
	case "fastopen":
		return unix.Sendto(c.FD, []byte(c.Data), unix.MSG_FASTOPEN, sockaddr(c.FD, c.Addr))
	case "write":
		_, err := unix.Write(c.FD, []byte(c.Data))
		return err
	case "recvfrom":
		buf := make([]byte, 1024)
		n, sa, err := unix.Recvfrom(c.FD, buf, 0)
		for errors.Is(err, unix.EAGAIN) && patiently.await(c.FD, unix.POLLIN) == nil {
			n, sa, err = unix.Recvfrom(c.FD, buf, 0)
		}
		r.Data, r.Addr = string(buf[:max(n, 0)]), addrPort(sa)
		return err
	case "splice":
		if err := patiently.await(c.FD, unix.POLLIN); err != nil {
			return err
		}
		r.Data, err = spliced(c.FD)
		return err
	case "join": // another cgroup
		return os.WriteFile(c.Data+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
	}
	return errors.New("unknown call " + c.Op)
}

// spliced reads with splice(2).
func spliced(fd int) (string, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return "", err
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	n, err := unix.Splice(fd, nil, pipe[1], nil, 1024, unix.SPLICE_F_NONBLOCK)
	if err != nil {
		return "", err
	}
	buf := make([]byte, n)
	_, err = unix.Read(pipe[0], buf)
	return string(buf), err
}

func sockaddr(fd int, a netip.AddrPort) unix.Sockaddr {
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.Addr().Unmap().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// addrPort keeps mapped addresses mapped: tests want to see them.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// A non-blocking connection.
func (a *actor) dialNonblock(addr string) (int, error) {
	a.t.Helper()
	fd := a.socket(domainOf(addr), unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
	return fd, a.connect(fd, addr)
}

func (a *actor) acceptNonblock(fd int) (int, netip.AddrPort) {
	a.t.Helper()
	r := a.must(call{Op: "accept", FD: fd, Type: unix.SOCK_NONBLOCK})
	return r.FD, r.Addr
}

func none(errno syscall.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
