// SPDX-License-Identifier: Apache-2.0

// Command dialer dials 240.240.0.1:80 with the first system calls that it makes
// of its own, and exits with 0 if that worked, and with the errno otherwise.
package main

import (
	"errors"
	"os"
	"syscall"
)

func main() {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{240, 240, 0, 1}, Port: 80})
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		os.Exit(int(errno))
	}
}
