// SPDX-License-Identifier: Apache-2.0

// Package systemd is the service's side of systemd: the unit, and the
// notifications that Type=notify and WatchdogSec= expect (sd_notify(3)).
//
// It knows nothing of the mesh. Without systemd every call does nothing.
package systemd

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Notifier talks to the service manager that started the process. The zero
// value is ready to use; methods may be called from any goroutine.
type Notifier struct{}

// Ready reports that start-up is done: capture is in force.
func (Notifier) Ready(status string) error {
	return notify(daemon.SdNotifyReady + "\nSTATUS=" + status)
}

// Status sets the line that systemctl status shows.
func (Notifier) Status(status string) error { return notify("STATUS=" + status) }

// Reloading reports that a reload begins; Ready ends it.
func (Notifier) Reloading() error {
	// MONOTONIC_USEC is required by Type=notify-reload and ignored otherwise.
	return notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonicMicroseconds()))
}

// Stopping reports that the service drains.
func (Notifier) Stopping() error { return notify(daemon.SdNotifyStopping) }

// Alive feeds the watchdog.
func (Notifier) Alive() error { return notify(daemon.SdNotifyWatchdog) }

// WatchdogInterval is how often Alive has to be called at least, 0 when no
// watchdog waits for it. It is half of WatchdogSec=, as sd_watchdog_enabled(3)
// recommends.
func (Notifier) WatchdogInterval() (time.Duration, error) {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0, fmt.Errorf("read WATCHDOG_USEC: %w", err)
	}
	return d / 2, nil
}

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// MainPID says that another process is the service's main one from now on.
func (Notifier) MainPID(pid int) error { return notify(fmt.Sprintf("MAINPID=%d", pid)) }
