// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/internal/helper"
)

const (
	noCapture = "Nothing is captured."
	noInbound = "Workloads' ports can't be guarded; nothing is captured."
)

// programs are the places where the capture attaches programs.
var programs = []struct {
	name      string
	typ       ebpf.ProgramType
	attach    ebpf.AttachType
	minKernel string
}{
	{"cgroup/connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "4.17"},
	{"cgroup/connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "4.17"},
	{"cgroup/bind4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Bind, "4.17"},
	{"cgroup/bind6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Bind, "4.17"},
	{"cgroup/sendmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg, "4.18"},
	{"cgroup/sendmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg, "4.18"},
	{"cgroup/recvmsg4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Recvmsg, "5.2"},
	{"cgroup/recvmsg6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Recvmsg, "5.2"},
	{"cgroup/getpeername4", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet4GetPeername, "5.8"},
	{"cgroup/getpeername6", ebpf.CGroupSockAddr, ebpf.AttachCgroupInet6GetPeername, "5.8"},
	{"sockops", ebpf.SockOps, ebpf.AttachCGroupSockOps, "4.13"},
	{"sk_lookup", ebpf.SkLookup, ebpf.AttachSkLookup, "5.9"},
}

func programChecks() []check {
	var checks []check
	for _, p := range programs {
		c := check{
			name: "program " + p.name, required: true, minKernel: p.minKernel, consequence: noCapture,
			look: func() (string, error) {
				prog, err := load(p.typ, p.attach)
				if err != nil {
					return "", err
				}
				return "", prog.Close()
			},
		}
		if p.typ == ebpf.SkLookup {
			c.consequence = noInbound
		}
		checks = append(checks, c)
	}
	return checks
}

// load loads a program that does nothing but allow. A kernel that doesn't know
// type or attach type answers EINVAL, or E2BIG when it has no field for it.
func load(typ ebpf.ProgramType, attach ebpf.AttachType) (*ebpf.Program, error) {
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: typ, AttachType: attach, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.E2BIG) {
		err = absence{err}
	}
	if err != nil {
		return nil, fmt.Errorf("load program: %w", err)
	}
	return prog, nil
}

// helpers are the kernel's functions that the programs call.
var helpers = []struct {
	program     string
	typ         ebpf.ProgramType
	helper      asm.BuiltinFunc
	required    bool
	minKernel   string
	consequence string
}{
	{"cgroup", ebpf.CGroupSockAddr, asm.FnSkStorageGet, true, "", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnGetCurrentCgroupId, true, "", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnGetCurrentAncestorCgroupId, true, "", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnGetCurrentUidGid, true, "", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnGetNetnsCookie, true, "5.7", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnSetsockopt, true, "", noCapture},
	{"cgroup", ebpf.CGroupSockAddr, asm.FnRingbufReserve, true, "5.8", noCapture},
	{
		"cgroup", ebpf.CGroupSockAddr, asm.FnSetRetval, false, "5.18",
		"Refused TCP connections are sent to port 0 of loopback to get ECONNREFUSED; refused datagrams get EPERM. All else works.",
	},
	{
		"cgroup", ebpf.CGroupSockAddr, asm.FnGetCurrentPidTgid, false, "6.10",
		"Refusals are reported without the process that was refused. All else works.",
	},
	{
		"cgroup", ebpf.CGroupSockAddr, asm.FnSkcToMptcpSock, false, "5.19",
		"A client that uses MPTCP sees 127.0.0.1 and the proxy's port as its peer. All else works.",
	},
	{"sockops", ebpf.SockOps, asm.FnSkStorageGet, true, "", noCapture},
	{"sockops", ebpf.SockOps, asm.FnGetSocketCookie, true, "", noCapture},
	{"sockops", ebpf.SockOps, asm.FnSockOpsCbFlagsSet, true, "", noCapture},
	{"sockops", ebpf.SockOps, asm.FnSkcToTcpSock, true, "", noCapture},
	{
		"sockops", ebpf.SockOps, asm.FnProbeReadKernel, false, "",
		"A service that listens without having bound an address is not guarded at the port that it gets. All else works.",
	},
	{"raw_tp", ebpf.RawTracepoint, asm.FnProbeReadKernelStr, true, "5.5", noCapture},
	{"sk_lookup", ebpf.SkLookup, asm.FnSkAssign, true, "5.9", noInbound},
	{"sk_lookup", ebpf.SkLookup, asm.FnSkRelease, true, "5.9", noInbound},
}

func helperChecks() []check {
	var checks []check
	for _, h := range helpers {
		checks = append(checks, check{
			name:     fmt.Sprintf("helper %s in %s", helperName(h.helper), h.program),
			required: h.required, minKernel: h.minKernel, consequence: h.consequence,
			look: func() (string, error) { return "", helper.Have(h.typ, h.helper) },
		})
	}
	return append(checks, check{
		name: "field ingress_ifindex of sk_lookup", minKernel: "5.17",
		consequence: "Connections of this machine to its own addresses are told by the addresses alone. All else works.",
		look:        ingressIfindex,
	})
}

// ingressIfindex looks at the structure behind sk_lookup's context, which got
// the field together with the context (commit f89315650ba3).
func ingressIfindex() (string, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return "", err
	}
	var s *btf.Struct
	if err := kernel.TypeByName("bpf_sk_lookup_kern", &s); err != nil {
		return "", err
	}
	for _, m := range s.Members {
		if m.Name == "ingress_ifindex" {
			return "", nil
		}
	}
	return "", absent("the kernel has no such field")
}

// maps are the types of the capture's maps that not every kernel has.
var maps = []struct {
	typ       ebpf.MapType
	minKernel string
}{
	{ebpf.LPMTrie, "4.11"},
	{ebpf.SockHash, "4.18"},
	{ebpf.SkStorage, "5.2"},
	{ebpf.RingBuf, "5.8"},
}

func mapChecks() []check {
	var checks []check
	for _, m := range maps {
		checks = append(checks, check{
			name: "map " + m.typ.String(), required: true, minKernel: m.minKernel, consequence: noCapture,
			look: func() (string, error) { return "", features.HaveMapType(m.typ) },
		})
	}
	return checks
}

func linkChecks() []check {
	return []check{
		{
			name: "link cgroup", required: true, minKernel: "5.7", consequence: noCapture,
			look: cgroupLink,
		},
		{
			name: "tracepoint cgroup_mkdir", required: true, minKernel: "4.17",
			consequence: "A workload that starts would be outside the mesh at first; nothing is captured.",
			look:        func() (string, error) { return tracepoint("cgroup_mkdir") },
		},
		{
			name: "tracepoint cgroup_rmdir", required: true, minKernel: "4.17", consequence: noCapture,
			look: func() (string, error) { return tracepoint("cgroup_rmdir") },
		},
	}
}

// cgroupLink asks for a link to something that is no cgroup. Only a kernel that
// knows such links (commit af6eea57437a) gets as far as looking at it.
func cgroupLink() (string, error) {
	target, err := os.Open(os.DevNull)
	if err != nil {
		return "", err
	}
	defer target.Close()
	prog, err := load(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect)
	if err != nil {
		return "", err
	}
	defer prog.Close()
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(target.Fd()), Program: prog, Attach: ebpf.AttachCGroupInet4Connect})
	switch {
	case err == nil:
		_ = l.Close()
		return "", errors.New("the kernel linked a program to nothing")
	case errors.Is(err, unix.EBADF):
		return "", nil
	case errors.Is(err, unix.EINVAL):
		return "", absence{err}
	default:
		return "", err
	}
}

// tracepoint attaches a program that does nothing, for an instant.
func tracepoint(name string) (string, error) {
	prog, err := load(ebpf.RawTracepoint, ebpf.AttachNone)
	if err != nil {
		return "", err
	}
	defer prog.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: prog})
	if errors.Is(err, unix.ENOENT) {
		return "", absence{err}
	}
	if err != nil {
		return "", err
	}
	return "", l.Close()
}
