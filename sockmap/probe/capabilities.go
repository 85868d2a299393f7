// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"os"

	"github.com/meshproxy/meshproxy/sockmap/internal/capability"
)

func capabilityChecks(o Options) []check {
	all := []struct {
		capability.Capability
		required    bool
		minKernel   string
		consequence string
	}{
		{capability.BPF, true, "5.8", "Programs can't be loaded; nothing is captured."},
		{capability.PerfMon, true, "5.8", "Programs that read kernel memory can't be loaded; nothing is captured."},
		{capability.NetAdmin, true, "", "Programs can't be attached; nothing is captured."},
		{
			capability.SysAdmin, false, "",
			"Workloads in network namespaces of their own (containers, pods) can't be reached: their connections are refused. Others work.",
		},
		{
			capability.SysPtrace, false, "",
			"The network namespaces of other users' processes can't be found: containers' connections are refused. Others work.",
		},
	}
	checks := make([]check, 0, len(all))
	for _, c := range all {
		checks = append(checks, check{
			name: c.Name, required: c.required, minKernel: c.minKernel, consequence: c.consequence,
			look: func() (string, error) {
				has, err := capability.Effective()
				switch {
				case err != nil:
					return "", err
				case has.Has(c.Capability):
					return "", nil
				case !c.required && helps(o.NetNSHelper):
					return "the helper has it", nil
				}
				return "", absent("the process does not have it")
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
