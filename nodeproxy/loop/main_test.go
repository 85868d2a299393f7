// SPDX-License-Identifier: Apache-2.0

package loop_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a goroutine or a descriptor outlives the tests.
func TestMain(m *testing.M) {
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		if after := descriptors(); len(after) > len(before) {
			fmt.Fprintf(os.Stderr, "descriptors leaked: before %v, after %v\n", before, after)
			code = 1
		}
	}
	os.Exit(code)
}

// descriptors lists the sockets and event descriptors that are open; the
// runtime's own epoll and eventfd come into being whenever it pleases.
func descriptors() []string {
	var open []string
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && len(to) > 7 && to[:7] == "socket:" {
			open = append(open, to)
		}
	}
	return open
}
