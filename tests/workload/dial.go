// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialer is the role "dial-once".
type dialer struct {
	addr    string
	send    string
	bind    string
	device  string
	mapped  bool
	timeout time.Duration
}

func dialOnce(ctx context.Context, args []string, out *reporter) error {
	d := &dialer{}
	fs := flag.NewFlagSet("dial-once", flag.ContinueOnError)
	fs.StringVar(&d.addr, "address", "", "host:port; a name is looked up")
	fs.StringVar(&d.send, "send", "", "line to send after connecting; then a line is awaited")
	fs.StringVar(&d.bind, "bind", "", "address to bind to, with or without port")
	fs.StringVar(&d.device, "device", "", "link to bind to (SO_BINDTODEVICE)")
	fs.BoolVar(&d.mapped, "mapped", false, "use an IPv6 socket and an IPv4-mapped address")
	fs.DurationVar(&d.timeout, "timeout", 5*time.Second, "for all of it")
	if err := parse(fs, args); err != nil {
		return err
	}
	if d.addr == "" {
		return fmt.Errorf("%w: dial-once: -address is needed", errUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	r := Dialed{Event: EventDialed, Target: d.addr}
	stage, err := d.run(ctx, &r)
	if err == nil {
		r.OK = true
		out.report(r)
		return nil
	}
	r.Stage, r.Error = stage, errorName(err)
	out.report(r)
	return errReported
}

// run returns the stage at which it failed.
func (d *dialer) run(ctx context.Context, r *Dialed) (stage string, err error) {
	addr, err := d.resolve(ctx)
	if err != nil {
		return "resolve", err
	}
	begin := time.Now()
	conn, err := d.connect(ctx, addr)
	r.ConnectMicros = time.Since(begin).Microseconds()
	if err != nil {
		return "connect", err
	}
	defer conn.Close()
	r.Peers = peersOf(conn, false)
	if d.send == "" {
		return "", nil
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := fmt.Fprintln(conn, d.send); err != nil {
		return "write", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	r.Reply = strings.TrimSuffix(line, "\n")
	if err != nil {
		return "read", err
	}
	return "", nil
}

func (d *dialer) resolve(ctx context.Context) (netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(d.addr); err == nil {
		return a, nil
	}
	host, port, err := net.SplitHostPort(d.addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(number)), nil
}

// connect uses the system calls themselves: net.Dialer chooses the family and
// would unmap an IPv4-mapped address.
func (d *dialer) connect(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	family := unix.AF_INET
	if addr.Addr().Is6() || d.mapped {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "dial-once") // closes the descriptor
	defer f.Close()
	if err := d.prepare(ctx, fd, family); err != nil {
		return nil, err
	}
	for {
		err = unix.Connect(fd, sockaddr(addr, family))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		// A blocking connect that times out by SO_SNDTIMEO says so.
		if err == unix.EINPROGRESS {
			err = syscall.ETIMEDOUT
		}
		return nil, err
	}
	return net.FileConn(f)
}

func (d *dialer) prepare(ctx context.Context, fd, family int) error {
	deadline, _ := ctx.Deadline()
	tv := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return fmt.Errorf("set timeout: %w", err)
	}
	if d.device != "" {
		if err := unix.BindToDevice(fd, d.device); err != nil {
			return fmt.Errorf("bind to device: %w", err)
		}
	}
	if d.bind == "" {
		return nil
	}
	local, err := netip.ParseAddrPort(d.bind)
	if err != nil {
		addr, err := netip.ParseAddr(d.bind)
		if err != nil {
			return err
		}
		local = netip.AddrPortFrom(addr, 0)
	}
	if err := unix.Bind(fd, sockaddr(local, family)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

func sockaddr(a netip.AddrPort, family int) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
