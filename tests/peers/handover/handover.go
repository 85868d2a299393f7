// SPDX-License-Identifier: Apache-2.0

// Package handover opens sockets in another process and hands them over. A
// socket belongs to the cgroup and the network namespace of the process that
// made it, so a test can hold both ends of a connection in its own hands, step
// by step, while the mesh sees an application in its cgroup.
//
// It knows sockets and processes of a testnet, and nothing of the mesh.
package handover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

const (
	// roleEnv makes a process an opener.
	roleEnv = "MESHPROXY_HANDOVER"
	// channelFD is the opener's end of the channel.
	channelFD = 3
	// dialSeconds bounds a connect.
	dialSeconds = 60

	verbDial   = "dial"
	verbListen = "listen"
)

// Init makes this process an opener, for the rest of its life, if Start has
// started it as one. A program that calls Start calls Init before anything
// else.
func Init() {
	if os.Getenv(roleEnv) != "" {
		serve(channelFD)
		os.Exit(0)
	}
}

// Place is where a process can run: a testnet host or container.
type Place interface {
	Start(testnet.Command) (*testnet.Process, error)
}

// Opener is a process that opens sockets.
type Opener struct {
	process *testnet.Process
	mu      sync.Mutex // one request at a time
	channel *net.UnixConn
}

// Start starts an opener in a cgroup: this program once more, which must call
// Init.
func Start(where Place, name, cgroup string) (*Opener, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make channel: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "opener's channel")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "channel")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("make channel: %w", err)
	}
	o := &Opener{channel: conn.(*net.UnixConn)}
	o.process, err = where.Start(testnet.Command{
		Name: name, Path: testnet.Self, Env: []string{roleEnv + "=1"},
		Cgroup: cgroup, ExtraFiles: []*os.File{theirs},
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return o, nil
}

// Close ends the process. Sockets that it has handed over live on.
func (o *Opener) Close(ctx context.Context) error {
	_ = o.channel.Close()
	return o.process.Wait(ctx)
}

// Dial connects to a literal address.
func (o *Opener) Dial(address string) (*net.TCPConn, error) {
	f, err := o.ask(verbDial, address)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take over connection to %s: %w", address, err)
	}
	return c.(*net.TCPConn), nil
}

// Listen opens a listener on a literal address.
func (o *Opener) Listen(address string) (*net.TCPListener, error) {
	f, err := o.ask(verbListen, address)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over listener on %s: %w", address, err)
	}
	return l.(*net.TCPListener), nil
}

func (o *Opener) ask(verb, address string) (*os.File, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.channel.Write([]byte(verb + " " + address)); err != nil {
		return nil, fmt.Errorf("ask %s: %w", o.process.Name(), err)
	}
	text, rights := make([]byte, 64), make([]byte, unix.CmsgSpace(4))
	n, oob, _, _, err := o.channel.ReadMsgUnix(text, rights)
	if err != nil || n == 0 {
		return nil, fmt.Errorf("hear %s: %w: %s", o.process.Name(), errors.Join(err, errGone), o.process.Stderr().Tail(500))
	}
	if errno, err := strconv.Atoi(string(text[:n])); err != nil || errno != 0 {
		return nil, fmt.Errorf("%s %s: %w", verb, address, errors.Join(err, syscall.Errno(errno)))
	}
	messages, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("parse control messages: %w", errors.Join(err, errGone))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("parse rights: %w", errors.Join(err, errGone))
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), verb+" "+address), nil
}

var errGone = errors.New("no answer")

// serve opens what is asked for until the channel's other end is closed.
func serve(channel int) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Read(channel, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		verb, address, _ := strings.Cut(string(buf[:n]), " ")
		fd, err := open(verb, address)
		var rights []byte
		if err == nil {
			rights = unix.UnixRights(fd)
		}
		if err := unix.Sendmsg(channel, []byte(answer(err)), rights, nil, 0); err != nil {
			return
		}
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// answer is the errno, 0 for none.
func answer(err error) string {
	if err == nil {
		return "0"
	}
	errno := syscall.EINVAL
	errors.As(err, &errno)
	return strconv.Itoa(int(errno))
}

// open uses the system calls themselves: nothing may be done besides.
func open(verb, address string) (fd int, err error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return -1, err
	}
	family, sa := sockaddr(to)
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	switch verb {
	case verbDial:
		tv := unix.Timeval{Sec: dialSeconds}
		err = errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv), connect(fd, sa))
	case verbListen:
		if err = unix.Bind(fd, sa); err == nil {
			err = unix.Listen(fd, unix.SOMAXCONN)
		}
	default:
		err = unix.EINVAL
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connect goes on waiting after a signal, of which the Go runtime has some.
func connect(fd int, sa unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, sa)
		switch err {
		case unix.EINTR:
		case unix.EISCONN: // meanwhile
			return nil
		default:
			return err
		}
	}
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
