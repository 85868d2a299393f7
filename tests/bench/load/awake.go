// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// CPUs are the processors that this process may run on.
func CPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("read affinity: %w", err)
	}
	var all []int
	for cpu := 0; len(all) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	return all, nil
}

// stayOn binds the calling thread to a processor, or to several.
func stayOn(cpus ...int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("stay on processors %v: %w", cpus, err)
	}
	return nil
}

// KeepAwake keeps a processor from halting, for ever: it runs when nobody else
// wants to (SCHED_IDLE). It calls ready when it does.
func KeepAwake(cpu int, ready func()) error {
	runtime.LockOSThread()
	if err := stayOn(cpu); err != nil {
		return err
	}
	idle := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	if err := unix.SchedSetAttr(0, &idle, 0); err != nil {
		return fmt.Errorf("become idle: %w", err)
	}
	ready()
	for {
		_ = time.Now() // no system call
	}
}
