// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/systemd"
)

func TestMain(m *testing.M) {
	if os.Getenv("SUPERVISOR_TEST_ROLE") == "list" {
		list, err := systemd.Stored()
		if err != nil {
			os.Exit(1)
		}
		for _, d := range list {
			if d.FD < 3 {
				os.Exit(1)
			}
			os.Stdout.WriteString(d.Name + "\n")
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// TestStore: what is stored comes back to the next process, once each.
func TestStore(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	none, err := s.Command()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range none.Env {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	var n systemd.Notifier
	if !n.Keeps() {
		t.Error("there seems to be no store")
	}
	one, two := tempFile(t), tempFile(t)
	defer one.Close()
	defer two.Close()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(n.Store("a", int(one.Fd()), int(two.Fd())))
	check(n.Store("b", int(one.Fd())))
	check(n.Ready("all is stored"))
	await(t, func() bool { return s.Ready() == 1 })
	if got := s.Stored(); len(got) != 1 || got["a"] != 2 {
		t.Errorf("stored %v", got)
	}

	next, err := s.Command()
	check(err)
	defer next.Close()
	exe, err := os.Executable()
	check(err)
	cmd := exec.Command(next.Before[0], append(slices.Clone(next.Before[1:]), exe)...)
	cmd.Env, cmd.ExtraFiles = append(next.Env, "SUPERVISOR_TEST_ROLE=list"), next.Files
	out, err := cmd.Output()
	if err != nil || string(out) != "a\na\n" {
		t.Errorf("the next process has %q, %v", out, err)
	}
	check(n.Discard("a"))
	check(n.MainPID(1))
	await(t, func() bool { return s.Main() == 1 })
	check(n.Ready("not the main process any more"))
	await(t, func() bool { return len(s.Ignored()) == 1 })
	if got := s.Stored(); len(got) != 0 {
		t.Errorf("stored %v", got)
	}
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func await(t *testing.T, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it does not happen")
		}
	}
}
