// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// copyBenchmark is the Go benchmark of one read on the copy path, as `go test`
// takes it.
const (
	copyBenchmark = "BenchmarkRead"
	copyPackage   = "github.com/meshproxy/meshproxy/nodeproxy/l4"
)

// copyAllocations runs that benchmark, which needs the Go toolchain, and
// returns the most allocations per read in any of its lines.
func copyAllocations(ctx context.Context) (float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+copyBenchmark+"$", "-benchmem", copyPackage)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("run %s: %w: %s", copyBenchmark, err, out)
	}
	return parseAllocations(out)
}

var errNoBenchmark = errors.New("no line of " + copyBenchmark)

func parseAllocations(out []byte) (float64, error) {
	most, found := 0.0, false
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || !strings.HasPrefix(fields[0], copyBenchmark) || fields[len(fields)-1] != "allocs/op" {
			continue
		}
		n, err := strconv.ParseFloat(fields[len(fields)-2], 64)
		if err != nil {
			return 0, fmt.Errorf("parse %q: %w", lines.Text(), err)
		}
		most, found = max(most, n), true
	}
	if !found {
		return 0, errNoBenchmark
	}
	return most, nil
}
