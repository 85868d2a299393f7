// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What splicing needs. A node runs its own self-test besides, through the
// programs and maps that connections take; its outcome is in the status.

const stayTCP = "With `splicing: auto`, connections between workloads of this node go without the proxy, and stay TCP. All else works."

func spliceChecks() []check {
	return []check{
		{name: "kfunc bpf_rdonly_cast", minKernel: "6.2", consequence: stayTCP, look: func() (string, error) { return kfunc("bpf_rdonly_cast") }},
		{name: "kfunc bpf_cast_to_kern_ctx", minKernel: "6.2", consequence: stayTCP, look: func() (string, error) { return kfunc("bpf_cast_to_kern_ctx") }},
		{name: "receiver's charge in sk_msg", minKernel: "6.13", consequence: stayTCP, look: receiverCharge},
	}
}

// kfunc looks a kernel function up; that the program may call it shows when it
// is loaded.
func kfunc(name string) (string, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return "", fmt.Errorf("read kernel's types: %w", err)
	}
	var f *btf.Func
	if err := kernel.TypeByName(name, &f); err != nil {
		return "", absence{err}
	}
	return "", nil
}

// receiverCharge redirects a message from one socket of this process to another
// one and looks whether that is held against the receiver, as it is since
// d888b7af7c14 (6.13 and some stable kernels). Where it isn't, a receiver that
// does not read would take any amount.
func receiverCharge() (string, error) {
	client, server, err := tcpPair()
	if err != nil {
		return "", err
	}
	defer unix.Close(client)
	defer unix.Close(server)
	sockets, err := redirecting(client, server)
	if err != nil {
		return "", err
	}
	defer sockets.Close()
	const size = 4096
	if _, err := unix.Write(client, make([]byte, size)); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	// SK_MEMINFO_RMEM_ALLOC comes first of what the option tells.
	charge, err := unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_MEMINFO)
	if err != nil {
		return "", fmt.Errorf("read charge: %w", err)
	}
	if charge < size {
		return "", absent(fmt.Sprintf("%d bytes that a program redirects are charged with %d", size, charge))
	}
	return fmt.Sprintf("%d bytes are charged with %d", size, charge), nil
}

// redirecting has what the first socket sends go straight to the second, for as
// long as the map is open.
func redirecting(from, to int) (_ *ebpf.Map, err error) {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Name: probeName, Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return nil, fmt.Errorf("make map of sockets: %w", err)
	}
	defer func() {
		if err != nil {
			sockets.Close()
		}
	}()
	const receiver, ingress = 1, 1 // the key, and BPF_F_INGRESS
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: probeName, Type: ebpf.SkMsg, AttachType: ebpf.AttachSkMsgVerdict, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMapPtr(asm.R2, sockets.FD()),
			asm.Mov.Imm(asm.R3, receiver),
			asm.Mov.Imm(asm.R4, ingress),
			asm.FnMsgRedirectMap.Call(),
			asm.Return(),
		},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, fmt.Errorf("load program: %w", err)
	}
	defer prog.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: sockets.FD(), Program: prog, Attach: ebpf.AttachSkMsgVerdict})
	if err != nil {
		return nil, fmt.Errorf("attach program: %w", err)
	}
	for key, fd := range []int{from, to} {
		if err := sockets.Put(uint32(key), uint32(fd)); err != nil {
			return nil, fmt.Errorf("put socket into map: %w", err)
		}
	}
	return sockets, nil
}

// tcpPair connects two sockets over loopback.
func tcpPair() (client, server int, err error) {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, 0, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		return 0, 0, fmt.Errorf("listen: %w", err)
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return 0, 0, fmt.Errorf("read address: %w", err)
	}
	if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, fmt.Errorf("make socket: %w", err)
	}
	if err = unix.Connect(client, at); err == nil {
		server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		unix.Close(client)
		return 0, 0, fmt.Errorf("connect over loopback: %w", err)
	}
	return client, server, nil
}
