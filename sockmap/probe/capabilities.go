// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func capabilityChecks(o Options) []check {
	all := []struct {
		name        string
		bit         uint
		instead     uint // another that includes it, or the same
		required    bool
		minKernel   string
		consequence string
	}{
		{"CAP_BPF", unix.CAP_BPF, unix.CAP_SYS_ADMIN, true, "5.8", "Programs can't be loaded; nothing is captured."},
		{"CAP_PERFMON", unix.CAP_PERFMON, unix.CAP_SYS_ADMIN, true, "5.8", "Programs that read kernel memory can't be loaded; nothing is captured."},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, unix.CAP_NET_ADMIN, true, "", "Programs can't be attached; nothing is captured."},
		{
			"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, unix.CAP_SYS_ADMIN, false, "",
			"Workloads in network namespaces of their own (containers, pods) can't be reached: their connections are refused. Others work.",
		},
		{
			"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, unix.CAP_SYS_PTRACE, false, "",
			"The network namespaces of other users' processes can't be found: containers' connections are refused. Others work.",
		},
	}
	checks := make([]check, 0, len(all))
	for _, c := range all {
		checks = append(checks, check{
			name: c.name, required: c.required, minKernel: c.minKernel, consequence: c.consequence,
			look: func() (string, error) {
				has, err := effective()
				if err != nil {
					return "", err
				}
				if has&(1<<c.bit) == 0 && has&(1<<c.instead) == 0 {
					if !c.required && helps(o.NetNSHelper) {
						return "the helper has it", nil
					}
					return "", absent("the process does not have it")
				}
				return "", nil
			},
		})
	}
	return checks
}

// helps: somebody listens for who may not enter namespaces himself.
func helps(socket string) bool {
	info, err := os.Stat(socket)
	return err == nil && info.Mode().Type() == os.ModeSocket
}

// effective returns the effective capabilities of the calling thread.
func effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}
