// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// What no list of helpers, maps or fields tells: it shows when it is done.

func behaviourChecks() []check {
	return []check{
		{
			name: "option SO_BINDTOIFINDEX in cgroup",
			consequence: "A socket that is bound to a device loses the device with its first connection into the mesh; " +
				"what the same socket dials outside the mesh afterwards takes the route that the machine has. All else works.",
			look: bindToIndex,
		},
		{
			name:        "inet_diag of UDP",
			consequence: "Workloads of one network namespace share the limits of DNS queries. All else works.",
			look:        diagUDP,
		},
	}
}

// bindToIndex lets a program bind a socket of this process to the loopback
// device while it connects, as the capture gives a socket its device back. The
// verifier does not look at options, so only running it tells.
func bindToIndex() (string, error) {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(sock)
	const loopback = 1
	l, err := attachToSelf(sock, asm.Instructions{
		asm.StoreImm(asm.RFP, -4, loopback, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, unix.SOL_SOCKET),
		asm.Mov.Imm(asm.R3, unix.SO_BINDTOIFINDEX),
		asm.Mov.Reg(asm.R4, asm.RFP),
		asm.Add.Imm(asm.R4, -4),
		asm.Mov.Imm(asm.R5, 4),
		asm.FnSetsockopt.Call(),
	})
	if err != nil {
		return "", err
	}
	defer l.Close()
	// Nothing is sent: this is UDP.
	if err := unix.Connect(sock, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	bound, err := unix.GetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil {
		return "", fmt.Errorf("read device: %w", err)
	}
	if bound != loopback {
		return "", absent("programs can release a socket from its device and not bind it to one")
	}
	return "", nil
}

// probeName is that of the program which is attached while it is tried, so that
// another process that looks for other people's programs meanwhile knows it.
const probeName = "meshproxy_probe"

// attachToSelf attaches a program to this process's cgroup that does something
// at connect(2) of one socket, with the context in R6, and lets all others be.
func attachToSelf(sock int, do asm.Instructions) (link.Link, error) {
	cookie, err := unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, fmt.Errorf("read cookie: %w", err)
	}
	root, err := cgroup.Root()
	if err != nil {
		return nil, err
	}
	own, err := cgroup.Self()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Join(root, own))
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	begin := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetSocketCookie.Call(),
		asm.LoadImm(asm.R1, int64(cookie), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R1, "out"),
	}
	end := asm.Instructions{asm.Mov.Imm(asm.R0, 1).WithSymbol("out"), asm.Return()}
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: probeName, Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: append(append(begin, do...), end...),
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("load program: %w", err)
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		return nil, fmt.Errorf("attach to cgroup %s: %w", own, err)
	}
	return l, nil
}

// diagUDP looks a socket of this process up.
func diagUDP() (string, error) {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(sock)
	if err := unix.Bind(sock, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", fmt.Errorf("bind: %w", err)
	}
	bound, err := unix.Getsockname(sock)
	if err != nil {
		return "", fmt.Errorf("read address: %w", err)
	}
	local, ok := bound.(*unix.SockaddrInet4)
	if !ok {
		return "", fmt.Errorf("address of another family: %T", bound)
	}
	s, err := sockdiag.Open(netns.Own)
	if err != nil {
		return "", err
	}
	defer s.Close()
	at := netip.AddrPortFrom(netip.AddrFrom4(local.Addr), uint16(local.Port))
	if _, err := s.Owner(sockdiag.UDP, at, netip.MustParseAddrPort("127.0.0.1:53")); err != nil {
		return "", absence{fmt.Errorf("look up own socket: %w", err)}
	}
	return "", nil
}
