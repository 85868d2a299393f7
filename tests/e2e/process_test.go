// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// processState is the letter of proc_pid_stat(5).
func processState(l *lab, pid int) string {
	l.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		l.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return after[:1]
}

// limitFiles sets the limit of a process's descriptors, and returns the one
// before.
func limitFiles(l *lab, pid int, n uint64) uint64 {
	l.Helper()
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		l.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: before.Max}, nil); err != nil {
		l.Fatal(err)
	}
	return before.Cur
}
