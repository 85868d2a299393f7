// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/meshproxy/meshproxy/sockmap/internal/helper"
)

// kernelFeatures are those for which the programs have a fallback. A probe that
// is not conclusive counts as no.
type kernelFeatures struct {
	setRetval      bool // bpf_set_retval: 5.18
	pid            bool // bpf_get_current_pid_tgid in cgroup hooks: 6.10
	probeRead      bool // bpf_probe_read_kernel in sockops
	mptcp          bool // bpf_skc_to_mptcp_sock: 5.19, 3bc253c2e652
	ingressIfindex bool // in sk_lookup's context: 5.17, f89315650ba3
	direct         bool // the verifier follows the direct way; known by trying
}

func probeFeatures() *kernelFeatures {
	return &kernelFeatures{
		setRetval:      helper.Have(ebpf.CGroupSockAddr, asm.FnSetRetval) == nil,
		pid:            helper.Have(ebpf.CGroupSockAddr, asm.FnGetCurrentPidTgid) == nil,
		probeRead:      helper.Have(ebpf.SockOps, asm.FnProbeReadKernel) == nil,
		mptcp:          helper.Have(ebpf.CGroupSockAddr, asm.FnSkcToMptcpSock) == nil,
		ingressIfindex: hasIngressIfindex(),
		direct:         true,
	}
}

// hasIngressIfindex looks at the structure behind the context, which has got the
// field together with the context.
func hasIngressIfindex() bool {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var ctx *btf.Struct
	if err := kernel.TypeByName("bpf_sk_lookup_kern", &ctx); err != nil {
		return false
	}
	for _, m := range ctx.Members {
		if m.Name == "ingress_ifindex" {
			return true
		}
	}
	return false
}

// flag is how constants of the programs say yes and no.
func flag(yes bool) uint8 {
	if yes {
		return 1
	}
	return 0
}
