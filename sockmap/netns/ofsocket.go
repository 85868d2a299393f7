// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OfSocket opens the network namespace that a socket is in. It needs
// CAP_NET_ADMIN there (SIOCGSKNS, Linux 4.9), and no process in it.
func OfSocket(fd int) (*Handle, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of socket: %w", err)
	}
	unix.CloseOnExec(ns)
	_, inode, err := identity(ns)
	if err != nil {
		_ = unix.Close(ns)
		return nil, fmt.Errorf("open network namespace of socket: %w", err)
	}
	return &Handle{file: os.NewFile(uintptr(ns), "netns of socket"), inode: inode}, nil
}
