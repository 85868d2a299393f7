// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a goroutine or a socket outlives the tests.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		if open := sockets(); len(open) > 0 {
			fmt.Fprintln(os.Stderr, "sockets leaked:", open)
			code = 1
		}
	}
	os.Exit(code)
}

func sockets() []string {
	var open []string
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		to, err := os.Readlink(l)
		if ok, _ := filepath.Match("socket:*", to); err == nil && ok {
			open = append(open, to)
		}
	}
	return open
}
