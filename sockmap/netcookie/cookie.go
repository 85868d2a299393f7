// SPDX-License-Identifier: Apache-2.0

// Package netcookie tells the cookie of a network namespace: the number by
// which programs in the kernel know it, and which unlike the inode is never
// reused.
//
// Sockets tell it since Linux 5.14 (SO_NETNS_COOKIE). Before, only a program
// learns it: this package has one for a moment. It must not know what the
// cookie is wanted for.
package netcookie

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Of returns the cookie of the namespace of fd, as bpf_get_netns_cookie gives
// it.
func Of(fd int) (uint64, error) { return By(netns.Direct{}, fd) }

// By is Of by a way of choice.
func By(way netns.Opener, fd int) (uint64, error) {
	cookie, err := netns.CookieBy(way, fd)
	if !errors.Is(err, netns.ErrNoCookie) {
		return cookie, err
	}
	if cookie, err = ask(way, fd); err != nil {
		return 0, fmt.Errorf("read cookie of network namespace by a program: %w", err)
	}
	return cookie, nil
}

// ask has a program write the cookie into the storage of a socket of the
// namespace. The program runs for every connect(2) in this process's cgroup
// meanwhile, and does nothing where a socket has no such storage.
func ask(way netns.Opener, fd int) (uint64, error) {
	// 5.10 charges BPF memory to RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return 0, fmt.Errorf("remove memory lock limit: %w", err)
	}
	storage, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "netns_cookies", Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: unix.BPF_F_NO_PREALLOC,
		Key: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}, Value: &btf.Int{Name: "unsigned long long", Size: 8},
	})
	if err != nil {
		return 0, fmt.Errorf("make map: %w", err)
	}
	defer storage.Close()
	program, err := ebpf.NewProgram(writeCookie(storage.FD()))
	if err != nil {
		return 0, fmt.Errorf("load program: %w", err)
	}
	defer program.Close()
	own, err := ownCgroup()
	if err != nil {
		return 0, err
	}
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: own, Attach: ebpf.AttachCGroupInet4Connect, Program: program})
	if err != nil {
		return 0, fmt.Errorf("attach program: %w", err)
	}
	defer attached.Close()

	socket, err := way.Socket(fd, unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(socket)
	key := int32(socket)
	if err := storage.Put(key, uint64(0)); err != nil {
		return 0, fmt.Errorf("mark socket: %w", err)
	}
	// Nothing is sent by it, and whether there is a route does not matter: the
	// program has run by then.
	_ = unix.Connect(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9})
	var cookie uint64
	if err := storage.Lookup(key, &cookie); err != nil {
		return 0, fmt.Errorf("look at socket: %w", err)
	}
	if cookie == 0 {
		return 0, errors.New("the program did not run")
	}
	return cookie, nil
}

func ownCgroup() (string, error) {
	root, err := cgroup.Root()
	if err != nil {
		return "", err
	}
	path, err := cgroup.Self()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, path), nil
}

// sockOfContext is the offset of sk in struct bpf_sock_addr of <linux/bpf.h>.
const sockOfContext = 64

// writeCookie is the program: where the socket that connects has storage, it
// gets the cookie.
func writeCookie(storage int) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Name: "netns_cookie", Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R1, sockOfContext, asm.DWord),
			asm.LoadMapPtr(asm.R1, storage),
			asm.Mov.Imm(asm.R3, 0),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnSkStorageGet.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.FnGetNetnsCookie.Call(),
			asm.StoreMem(asm.R7, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 1).WithSymbol("out"),
			asm.Return(),
		},
	}
}
