// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TestKeepEndsEarly: a demo that comes to no verdict is not kept.
func TestKeepEndsEarly(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		want string
	}{
		{"its nodes do not start", t.Context(), "this is no node"},
		{"Ctrl-C", cancelled, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			if err := Run(tc.ctx, []string{"-keep", "-duration", "1s"}, out, out); err == nil {
				t.Error("no error")
			}
			said, err := os.ReadFile(out.Name())
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(said), tc.want) {
				t.Errorf("it says %q, want %q in it", said, tc.want)
			}
			if found, err := takeDown(t.Context()); found || err != nil {
				t.Errorf("a keeper is left: %v, %v", found, err)
			}
		})
	}
}

// TestTakeDown: the keeper is asked to clean up, and waited for.
func TestTakeDown(t *testing.T) {
	if found, err := takeDown(t.Context()); found || err != nil {
		t.Fatalf("without a keeper: %v, %v", found, err)
	}
	top, err := testnet.New("host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := top.Host("host").Start(testnet.Command{Name: "keeper", Path: testnet.Self, Args: []string{commandName, "hold-lock"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdout().WaitString(t.Context(), "locked"); err != nil {
		t.Fatalf("%v: %s", err, p.Stderr().Tail(500))
	}
	if _, err := lockKeeperFile(); err == nil {
		t.Error("there are two keepers")
	}
	if found, err := takeDown(t.Context()); !found || err != nil {
		t.Errorf("take down: %v, %v", found, err)
	}
	<-p.Done()
}

// holdLock is a keeper that keeps nothing.
func holdLock() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	release, err := lockKeeperFile()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	fmt.Println("locked")
	<-ctx.Done()
	release()
}
