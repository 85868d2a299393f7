// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNotifierSpeaksToTheServiceManager(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)

	for _, tc := range []struct {
		name string
		call func() error
		want string
	}{
		{"ready", func() error { return Notifier{}.Ready("serving") }, "READY=1\nSTATUS=serving"},
		{"status", func() error { return Notifier{}.Status("waiting for leaves") }, "STATUS=waiting for leaves"},
		{"reloading", func() error { return Notifier{}.Reloading() }, "RELOADING=1\nMONOTONIC_USEC="},
		{"stopping", func() error { return Notifier{}.Stopping() }, "STOPPING=1"},
		{"alive", func() error { return Notifier{}.Alive() }, "WATCHDOG=1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := tc.call(); err != nil {
				t.Fatal(err)
			}
			conn.SetReadDeadline(time.Now().Add(time.Minute))
			buf := make([]byte, 256)
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if got := string(buf[:n]); !strings.HasPrefix(got, tc.want) {
				t.Errorf("notified %q, want %q", got, tc.want)
			}
		})
	}
}

func TestNotifierWithoutServiceManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := (Notifier{}).Ready("serving"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

func TestWatchdogIntervalIsHalfOfTheTimeout(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "10000000")
	t.Setenv("WATCHDOG_PID", "")
	got, err := Notifier{}.WatchdogInterval()
	if err != nil || got != 5*time.Second {
		t.Errorf("interval %v, %v; want 5s", got, err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := (Notifier{}).WatchdogInterval(); err == nil {
		t.Error("a value that is no number is accepted")
	}
}
