// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDemo(t *testing.T) {
	program := filepath.Join(t.TempDir(), "meshproxy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/meshproxy/meshproxy")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	var out strings.Builder
	if err := run(t.Context(), program, time.Second, &out); err != nil {
		t.Errorf("%v:\n%s", err, out.String())
	}
}
