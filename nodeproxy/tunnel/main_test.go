// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails when a goroutine or a socket outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		links, _ := filepath.Glob("/proc/self/fd/*")
		for _, l := range links {
			to, err := os.Readlink(l)
			if ok, _ := filepath.Match("socket:*", to); err == nil && ok {
				fmt.Fprintln(os.Stderr, "leaked", to)
				code = 1
			}
		}
	}
	os.Exit(code)
}
