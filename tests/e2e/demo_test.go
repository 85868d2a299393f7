// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDemoKeep: the demo stays when the command that made it has ended, the
// commands that it prints work, and it is taken down without trace.
func TestDemoKeep(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	demo := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(ctx, programs.meshproxy, append([]string{"demo"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("demo %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	t.Cleanup(func() { _ = exec.Command(programs.meshproxy, "demo", "--down").Run() })
	said := demo("--keep", "--duration", "5s")
	if !strings.Contains(said, "expectations hold") || !strings.Contains(said, "demo --down") {
		t.Errorf("it says\n%s", said)
	}
	command := regexp.MustCompile(`(?m)^  \S+ (status --config (\S+))$`).FindStringSubmatch(said)
	if command == nil {
		t.Fatalf("no command to try in\n%s", said)
	}
	out, err := exec.CommandContext(ctx, programs.meshproxy, strings.Fields(command[1])...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ready") {
		t.Errorf("%s: %v\n%s", command[1], err, out)
	}
	if said := demo("--down"); !strings.Contains(said, "Took down") {
		t.Errorf("it says %q", said)
	}
	if _, err := os.Stat(filepath.Dir(filepath.Dir(command[2]))); !os.IsNotExist(err) {
		t.Errorf("its directory is there: %v", err)
	}
	if said := demo("--down"); !strings.Contains(said, "No demo is up") {
		t.Errorf("it says %q", said)
	}
}
