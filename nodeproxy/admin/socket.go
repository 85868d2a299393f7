// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrSocketInUse: another node answers on the admin socket.
	ErrSocketInUse = errors.New("another node answers there")
	// ErrNotSocket: the admin socket's path is taken by something that is no
	// socket.
	ErrNotSocket = errors.New("not a socket")
)

// socketProbe is how long a node may take to accept before its socket counts
// as in use anyway.
const socketProbe = 2 * time.Second

// listenSocket listens on the socket, which only root, the own user and its group
// may open. One that nobody answers on is what a killed node left, and is replaced.
func listenSocket(o *Options) (*socketListener, error) {
	// Two nodes that start at once must not remove each other's socket.
	unlock, err := lockDir(filepath.Dir(o.Socket))
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := o.Listen("unix", o.Socket, func() (net.Listener, error) {
		if err := removeStale(o.Socket); err != nil {
			return nil, err
		}
		lc := net.ListenConfig{Control: restrictMode}
		return lc.Listen(context.Background(), "unix", o.Socket)
	})
	if err != nil {
		return nil, err
	}
	socket := l.(*net.UnixListener)
	socket.SetUnlinkOnClose(false)
	info, err := os.Lstat(o.Socket)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socketListener{UnixListener: socket, path: o.Socket, info: info}, nil
}

// restrictMode makes the socket the user's and the group's before it has a name:
// unix_bind takes the mode of the socket's inode, less the umask.
func restrictMode(_, _ string, c syscall.RawConn) error {
	var err error
	if ctlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o660) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), d.Close())
	}
	return func() { _ = d.Close() }, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return ErrNotSocket
	}
	c, err := net.DialTimeout("unix", path, socketProbe)
	if err == nil {
		_ = c.Close()
		return ErrSocketInUse
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w (%w)", ErrSocketInUse, err)
	}
	return os.Remove(path)
}

// socketListener removes its socket when it closes, unless another node has
// put its own in that place.
type socketListener struct {
	*net.UnixListener
	path   string
	info   os.FileInfo
	unlink sync.Once
}

// Accept implements net.Listener.
func (l *socketListener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return newPeerConn(c), nil
}

// Close implements net.Listener.
func (l *socketListener) Close() error {
	l.unlink.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.info) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}

// leave keeps Close from removing the socket.
func (l *socketListener) leave() { l.unlink.Do(func() {}) }
