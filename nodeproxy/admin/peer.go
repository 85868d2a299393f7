// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

// errPeer: the process at the other end may not use the admin socket.
var errPeer = errors.New("only root, the node's own user and members of its group may use the admin socket")

// peerConn is a connection of the admin socket that knows who is at the other
// end.
type peerConn struct {
	*net.UnixConn
	peer peerAddr
}

// RemoteAddr implements net.Conn. A client of a unix socket has no address
// worth showing; who it is takes its place.
func (c *peerConn) RemoteAddr() net.Addr { return c.peer }

// peerAddr is the process at the other end, as it was when it connected.
type peerAddr struct {
	uid uint32
	pid int32
	err error
}

// Network implements net.Addr.
func (peerAddr) Network() string { return "unix" }

// String implements net.Addr.
func (a peerAddr) String() string { return fmt.Sprintf("uid %d pid %d", a.uid, a.pid) }

func newPeerConn(c *net.UnixConn) *peerConn {
	cred, err := peerCredentials(c)
	if err != nil {
		return &peerConn{c, peerAddr{err: fmt.Errorf("read peer credentials: %w", err)}}
	}
	peer := peerAddr{uid: cred.Uid, pid: cred.Pid}
	if !mayUse(cred.Uid, os.Geteuid()) && !inGroup(c, cred.Gid, os.Getegid()) {
		peer.err = fmt.Errorf("%w (yours is %d)", errPeer, cred.Uid)
	}
	return &peerConn{c, peer}
}

func mayUse(uid uint32, own int) bool { return uid == 0 || int(uid) == own }

// inGroup: the group of a node that runs as root is no one's, and counts for
// nothing.
func inGroup(c *net.UnixConn, gid uint32, own int) bool {
	if own == 0 {
		return false
	}
	if int(gid) == own {
		return true
	}
	groups, err := peerGroups(c)
	return err == nil && slices.Contains(groups, uint32(own))
}

// peerGroups returns the supplementary groups of the process at the other end
// (SO_PEERGROUPS, Linux 4.13).
func peerGroups(c *net.UnixConn) (groups []uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctlErr := raw.Control(func(fd uintptr) {
		groups = make([]uint32, 64)
		for {
			size := uint32(4 * len(groups))
			_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
			switch {
			case e == unix.ERANGE && int(size) > 4*len(groups):
				groups = make([]uint32, size/4)
				continue
			case e != 0:
				groups, err = nil, e
			default:
				groups = groups[:size/4]
			}
			return
		}
	}); ctlErr != nil {
		return nil, ctlErr
	}
	return groups, err
}

func peerCredentials(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if ctlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); ctlErr != nil {
		return nil, ctlErr
	}
	return cred, err
}

type peerKey struct{}

// withPeer hands the peer to authorize.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	peer, ok := c.RemoteAddr().(peerAddr)
	if !ok {
		peer.err = errPeer
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// authorize answers 403 to everybody who may not use the socket. The socket's
// mode says so too; this holds after someone changed the mode.
func authorize(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(peerAddr)
		if !ok {
			peer.err = errPeer
		}
		if peer.err != nil {
			writeJSON(w, http.StatusForbidden, &api.Error{Kind: api.KindForbidden, Message: peer.err.Error()})
			return
		}
		h.ServeHTTP(w, r)
	})
}
