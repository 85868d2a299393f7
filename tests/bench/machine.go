// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine describes where the figures come from.
type machine struct {
	Date     string
	CPU      string
	Cores    int
	MemoryMB int
	Kernel   string
	System   string
	Go       string
	Rounds   int
	Seconds  float64
	Peers    []string
	// Failed are peers that couldn't be measured, and why.
	Failed []string
}

func describe(ctx context.Context, s *site, peers []contender, p plan) machine {
	m := machine{
		Date:    time.Now().UTC().Format(time.DateOnly),
		CPU:     lineValue("/proc/cpuinfo", "model name", ":"),
		Cores:   runtime.NumCPU(),
		System:  strings.Trim(lineValue("/etc/os-release", "PRETTY_NAME", "="), `"`),
		Go:      runtime.Version(),
		Rounds:  p.rounds,
		Seconds: p.window.Length.Seconds(),
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryMB = int(uint64(info.Totalram) * uint64(info.Unit) >> 20)
	}
	for _, c := range peers {
		peer, ok := c.(interface {
			version(context.Context, *site) string
		})
		if !ok {
			continue
		}
		if v := peer.version(ctx, s); v != "" {
			m.Peers = append(m.Peers, c.name()+": "+v)
		}
	}
	slices.Sort(m.Peers)
	return m
}

// lineValue returns what follows the first line that begins with key.
func lineValue(path, key, sep string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		k, v, ok := strings.Cut(lines.Text(), sep)
		if ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func (m machine) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "- %s, %d cores, %d MB of memory\n- %s, Linux %s\n", m.CPU, m.Cores, m.MemoryMB, m.System, m.Kernel)
	fmt.Fprintf(&b, "- %s, %d rounds of %g s per figure\n", m.Date, m.Rounds, m.Seconds)
	for _, p := range m.Peers {
		fmt.Fprintf(&b, "- %s\n", p)
	}
	for _, f := range m.Failed {
		fmt.Fprintf(&b, "- not measured: %s\n", f)
	}
	return b.String()
}
