// SPDX-License-Identifier: Apache-2.0

// Package capability tells what the process may do (capabilities(7)).
package capability

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is one of the kernel's.
type Capability struct {
	Name string
	bit  uint
	// within is another that includes it.
	within uint
}

// CAP_SYS_ADMIN includes those that were split off from it.
var (
	BPF       = Capability{"CAP_BPF", unix.CAP_BPF, unix.CAP_SYS_ADMIN}
	NetAdmin  = Capability{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, unix.CAP_NET_ADMIN}
	PerfMon   = Capability{"CAP_PERFMON", unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}
	SysAdmin  = Capability{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, unix.CAP_SYS_ADMIN}
	SysPtrace = Capability{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE, unix.CAP_SYS_PTRACE}
)

// Set is what a process has.
type Set uint64

// Effective returns the effective capabilities of the calling thread.
func Effective() (Set, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return Set(data[0].Effective) | Set(data[1].Effective)<<32, nil
}

// Has reports whether the set has a capability, or one that includes it.
func (s Set) Has(c Capability) bool { return s&(1<<c.bit|1<<c.within) != 0 }

// Lacks returns the names of those that are missing, with commas.
func (s Set) Lacks(all ...Capability) string {
	var missing []string
	for _, c := range all {
		if !s.Has(c) {
			missing = append(missing, c.Name)
		}
	}
	return strings.Join(missing, ", ")
}
