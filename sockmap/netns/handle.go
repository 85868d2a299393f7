// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Handle is an open network namespace. It keeps the namespace alive, with its
// interfaces and sockets, after the last process in it has ended; so does
// every socket opened in it.
type Handle struct {
	file  *os.File
	inode uint64
}

// OfPID opens the network namespace of a process. It returns ErrGone when the
// process has ended, even if nobody has waited for it yet.
//
// A pid may have been reused by the time that it is looked at: who learned it
// from a cgroup must look again, afterwards, whether it is still there.
func OfPID(pid int) (*Handle, error) {
	h, err := Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("open network namespace of process %d: %w", pid, ErrGone)
	}
	return h, err
}

// OfThread opens the network namespace of the calling thread, which for a
// goroutine that is not locked to a thread is the one of the process.
func OfThread() (*Handle, error) {
	return Open(threadNS)
}

// Open opens a network namespace by path: below /proc, or a bind mount such as
// those in /run/netns.
func Open(path string) (*Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	h, err := fromFile(f)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return h, nil
}

// FromFD makes a handle of a descriptor that somebody else has opened, and takes
// it over.
func FromFD(fd int) (*Handle, error) {
	h, err := fromFile(os.NewFile(uintptr(fd), "netns"))
	if err != nil {
		return nil, fmt.Errorf("take over network namespace: %w", err)
	}
	return h, nil
}

func fromFile(f *os.File) (*Handle, error) {
	fd := int(f.Fd())
	if typ, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || typ != unix.CLONE_NEWNET {
		_ = f.Close()
		return nil, ErrNotNamespace
	}
	_, inode, err := identity(fd)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Handle{file: f, inode: inode}, nil
}

// New makes a network namespace that holds nothing but a loopback interface,
// which is down.
func New() (*Handle, error) {
	var h *Handle
	err := borrow(func(t *Thread) (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		t.away = true
		h, err = OfThread()
		return err
	})
	return h, err
}

// FD returns the descriptor, which stays the handle's.
func (h *Handle) FD() int { return int(h.file.Fd()) }

// Inode returns the number in the namespace's name, "net:[4026531840]". It is
// free to be reused once the namespace is gone; the cookie never is.
func (h *Handle) Inode() uint64 { return h.inode }

// Close releases the namespace.
func (h *Handle) Close() error { return h.file.Close() }

// Same reports whether two descriptors stand for the same namespace. Either
// may be Own.
func Same(a, b int) (bool, error) {
	devA, inodeA, err := identity(a)
	if err != nil {
		return false, fmt.Errorf("compare network namespaces: %w", err)
	}
	devB, inodeB, err := identity(b)
	if err != nil {
		return false, fmt.Errorf("compare network namespaces: %w", err)
	}
	return devA == devB && inodeA == inodeB, nil
}

func identity(fd int) (dev, inode uint64, err error) {
	var st unix.Stat_t
	if fd == Own {
		err = unix.Stat(threadNS, &st)
	} else {
		err = unix.Fstat(fd, &st)
	}
	return uint64(st.Dev), st.Ino, err
}
