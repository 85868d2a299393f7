// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What splicing needs. A node runs its own self-test besides, through the
// programs and maps that connections take; its outcome is in the status.

const (
	stayTCP = "With `splicing: auto`, connections between workloads of this node go without the proxy, and stay TCP. All else works."
	unseen  = "With `splicing: auto`, it can't be seen who reads from connections with splice(2), as Go's io.Copy between two of them does: " +
		"such a workload gets nothing from one that is spliced. Give it `splice: off`. All else works."
)

func spliceChecks() []check {
	return []check{
		{name: "kfunc bpf_rdonly_cast", minKernel: "6.2", consequence: stayTCP, look: func() (string, error) { return kfunc("bpf_rdonly_cast") }},
		{name: "kfunc bpf_cast_to_kern_ctx", minKernel: "6.2", consequence: stayTCP, look: func() (string, error) { return kfunc("bpf_cast_to_kern_ctx") }},
		{name: "receiver's charge in sk_msg", minKernel: "6.13", consequence: stayTCP, look: receiverCharge},
		{name: "FIONREAD of redirected data", minKernel: "7.0", consequence: stayTCP, look: redirectedCounts},
		{name: "one queue of sk_msg and TCP", minKernel: "6.19", consequence: stayTCP, look: oneQueue},
		{name: "program fentry/tcp_splice_read", consequence: unseen, look: readersBySplice},
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

// readersBySplice watches for who calls splice(2) on a connection, as a node does.
// Kernels without trampolines refuse that, as those do that are locked; where
// nothing may be traced at all, nothing is said about the kernel.
func readersBySplice() (string, error) {
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: probeName, Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "tcp_splice_read", License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err == nil {
		defer prog.Close()
		var l link.Link
		if l, err = link.AttachTracing(link.TracingOptions{Program: prog}); err == nil {
			return "", l.Close()
		}
	}
	err = fmt.Errorf("watch a function of the kernel: %w", err)
	other, otherErr := load(ebpf.RawTracepoint, ebpf.AttachNone)
	if otherErr != nil {
		return "", err
	}
	_ = other.Close()
	return "", absence{err}
}

// receiverCharge redirects a message from one socket of this process to another
// one and looks whether that is held against the receiver, as it is since
// d888b7af7c14 (6.13 and some stable kernels). Where it isn't, a receiver that
// does not read would take any amount.
func receiverCharge() (string, error) {
	const size = 4096
	// SK_MEMINFO_RMEM_ALLOC comes first of what the option tells.
	charge, err := askReceiver(size, func(server int) (int, error) {
		return unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_MEMINFO)
	})
	if err != nil {
		return "", err
	}
	if charge < size {
		return "", absent(fmt.Sprintf("%d bytes that a program redirects are charged with %d", size, charge))
	}
	return fmt.Sprintf("%d bytes are charged with %d", size, charge), nil
}

// redirectedCounts redirects a message and looks whether its receiver is told how
// much there is to read, as it is since 929e30f93125 (7.0 and some stable
// kernels). Programs that size their reads by that would not read it.
func redirectedCounts() (string, error) {
	const size = 1000
	told, err := askReceiver(size, func(server int) (int, error) { return unix.IoctlGetInt(server, unix.TIOCINQ) })
	if err != nil {
		return "", err
	}
	if told != size {
		return "", absent(fmt.Sprintf("of %d bytes that a program redirects the receiver is told %d", size, told))
	}
	return "", nil
}

// askReceiver has a program redirect so many bytes, and asks the kernel about the
// socket that they are redirected to.
func askReceiver(size int, ask func(server int) (int, error)) (int, error) {
	client, server, err := tcpPair()
	if err != nil {
		return 0, err
	}
	defer unix.Close(client)
	defer unix.Close(server)
	sockets, err := redirecting(client, server, false)
	if err != nil {
		return 0, err
	}
	defer sockets.Close()
	if _, err := unix.Write(client, make([]byte, size)); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	answer, err := ask(server)
	if err != nil {
		return 0, fmt.Errorf("ask about the receiver: %w", err)
	}
	return answer, nil
}

// oneQueue redirects a message and has another one follow it by TCP, and looks
// whether one read gets both, and whether the kernel then knows that nothing is
// left: it counted what was redirected as TCP's until January 2026 (6.19 and
// some stable kernels). Kernels that can't splice for want of the casts are
// spared: their maps of sockets have had other faults in this.
func oneQueue() (string, error) {
	if _, err := kfunc("bpf_rdonly_cast"); err != nil {
		return "", err
	}
	client, server, err := tcpPair()
	if err != nil {
		return "", err
	}
	defer unix.Close(client)
	defer unix.Close(server)
	sockets, err := redirecting(client, server, true)
	if err != nil {
		return "", err
	}
	defer sockets.Close()
	const size = 1000
	if _, err := unix.Write(client, make([]byte, size)); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	if err := sockets.Delete(uint32(sender)); err != nil {
		return "", fmt.Errorf("take socket from map: %w", err)
	}
	if _, err := unix.Write(client, make([]byte, size)); err != nil {
		return "", fmt.Errorf("send: %w", err)
	}
	if err := awaitBytes(server, size); err != nil {
		return "", err
	}
	n, err := unix.Read(server, make([]byte, 4*size))
	if err != nil {
		return "", fmt.Errorf("read: %w", err)
	}
	if n != 2*size {
		return "", absent(fmt.Sprintf("a read gives %d of %d bytes", n, 2*size))
	}
	left, err := unix.IoctlGetInt(server, unix.TIOCINQ)
	if err != nil {
		return "", fmt.Errorf("ask what is left: %w", err)
	}
	if left != 0 {
		return "", absent(fmt.Sprintf("%d bytes are left of nothing", left))
	}
	return "", nil
}

// awaitBytes waits until TCP has delivered so much, which over loopback it has
// mostly done when the sender's write(2) returns.
func awaitBytes(fd int, want uint64) error {
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return fmt.Errorf("read TCP's state: %w", err)
		}
		if info.Bytes_received >= want {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %d bytes: %w", want, unix.ETIMEDOUT)
		}
	}
}

// The keys of redirecting's map.
const sender, receiver = 0, 1

// redirecting has what the first socket sends go straight to the second, for as
// long as the map is open, and with queue what comes to them by TCP into the same
// queue.
func redirecting(from, to int, queue bool) (_ *ebpf.Map, err error) {
	sockets, err := ebpf.NewMap(&ebpf.MapSpec{Name: probeName, Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return nil, fmt.Errorf("make map of sockets: %w", err)
	}
	defer func() {
		if err != nil {
			sockets.Close()
		}
	}()
	const ingress, pass = 1, 1 // BPF_F_INGRESS, SK_PASS
	if queue {
		err := attachTo(sockets, ebpf.SkSKB, ebpf.AttachSkSKBStreamVerdict, asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()})
		if err != nil {
			return nil, err
		}
	}
	err = attachTo(sockets, ebpf.SkMsg, ebpf.AttachSkMsgVerdict, asm.Instructions{
		asm.LoadMapPtr(asm.R2, sockets.FD()),
		asm.Mov.Imm(asm.R3, receiver),
		asm.Mov.Imm(asm.R4, ingress),
		asm.FnMsgRedirectMap.Call(),
		asm.Return(),
	})
	if err != nil {
		return nil, err
	}
	for key, fd := range map[uint32]int{sender: from, receiver: to} {
		if err := sockets.Put(key, uint32(fd)); err != nil {
			return nil, fmt.Errorf("put socket into map: %w", err)
		}
	}
	return sockets, nil
}

func attachTo(sockets *ebpf.Map, kind ebpf.ProgramType, at ebpf.AttachType, what asm.Instructions) error {
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: probeName, Type: kind, AttachType: at, License: "Dual BSD/GPL", Instructions: what,
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	defer prog.Close()
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: sockets.FD(), Program: prog, Attach: at})
	if err != nil {
		return fmt.Errorf("attach program: %w", err)
	}
	return nil
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
