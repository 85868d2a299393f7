// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/vm"
)

// summary is a file beside the logs; what it says is in the test's log as well.
type summary struct {
	t    *testing.T
	file *os.File
}

func newSummary(t *testing.T) *summary {
	t.Helper()
	dir, err := vm.LogDir()
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, t.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &summary{t: t}
	if s.file, err = os.Create(filepath.Join(dir, "summary.txt")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.file.Close(); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(s.file.Name())
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s:\n%s", s.file.Name(), text)
	})
	return s
}

func (s *summary) step(name string, ok bool, took time.Duration) {
	verdict := "passed"
	if !ok {
		verdict = "FAILED"
	}
	s.write(fmt.Sprintf("%-16s %s %6.1f s", name, verdict, took.Seconds()))
}

// note is a figure that nothing depends on.
func (s *summary) note(text string) { s.write("    " + text) }

func (s *summary) write(line string) {
	if _, err := fmt.Fprintln(s.file, line); err != nil {
		s.t.Error(err)
	}
}
