// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The descriptor store (systemd.io/FILE_DESCRIPTOR_STORE): the service manager
// keeps descriptors for the service over a restart, or a crash, and passes them
// to its next process. It needs FileDescriptorStoreMax= in the unit.

// maxRights is below SCM_MAX_FD.
const maxRights = 200

// Store has the service manager keep duplicates of the descriptors, under a name
// that several may have. Those that it has already it does not keep twice.
func (Notifier) Store(name string, fds ...int) error {
	for len(fds) > 0 {
		n := min(len(fds), maxRights)
		// Without polling: a listener never hangs up, and what the manager
		// takes out on its own would be missed only after the next restart.
		if err := notifyWith("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", fds[:n]); err != nil {
			return err
		}
		fds = fds[n:]
	}
	return nil
}

// Discard has the service manager close what it keeps under a name.
func (Notifier) Discard(name string) error { return notify("FDSTOREREMOVE=1\nFDNAME=" + name) }

// Keeps reports whether the service manager has a store for this service, as far
// as it says so: since version 254, in $FDSTORE.
func (Notifier) Keeps() bool {
	n, err := strconv.Atoi(os.Getenv("FDSTORE"))
	return err == nil && n > 0
}

// notifyWith is notify with descriptors.
func notifyWith(state string, fds []int) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	// Package net sends no descriptors on a connected datagram socket.
	sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer unix.Close(sock)
	to := &unix.SockaddrUnix{Name: path} // a leading @ is an abstract name's
	if err := unix.Sendmsg(sock, []byte(state), unix.UnixRights(fds...), to, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// Descriptor is one that the service manager kept. It is the caller's.
type Descriptor struct {
	Name string
	FD   int
}

// listenStart is SD_LISTEN_FDS_START.
const listenStart = 3

// Stored returns what the service manager has kept for this process, and takes
// the variables that say so out of the environment.
func Stored() ([]Descriptor, error) {
	variables := []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}
	pid, count, names := os.Getenv(variables[0]), os.Getenv(variables[1]), os.Getenv(variables[2])
	for _, v := range variables {
		if err := os.Unsetenv(v); err != nil {
			return nil, fmt.Errorf("clear %s: %w", v, err)
		}
	}
	if pid != strconv.Itoa(os.Getpid()) || count == "" {
		return nil, nil // for somebody else
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS=%q: want a number", count)
	}
	called := strings.Split(names, ":")
	list := make([]Descriptor, n)
	for i := range list {
		list[i].FD = listenStart + i
		unix.CloseOnExec(list[i].FD)
		if i < len(called) {
			list[i].Name = called[i]
		}
	}
	if n > 0 && len(called) != n {
		return list, errors.New("LISTEN_FDNAMES does not name as many descriptors as there are")
	}
	return list, nil
}
