// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxAccepts per turn and listener.
	maxAccepts   = 64
	listenEvents = unix.EPOLLIN | unix.EPOLLEXCLUSIVE

	// acceptPause is how long a listener rests when the process has no
	// descriptors or the kernel no memory left. Connections wait in the backlog
	// meanwhile; polling a level-triggered listener would spin instead.
	acceptPause = 100 * time.Millisecond
	// complaintInterval keeps a shortage from filling the log.
	complaintInterval = 10 * time.Second
)

// Listener accepts connections on a loop.
type Listener struct {
	loop   *Loop
	reg    Registration
	accept func(fd int, remote netip.AddrPort)
	resume *Timer

	fresh      int // accepted and being handed over, -1 otherwise
	complained time.Duration
}

// Listen calls accept for each connection that arrives at the listening socket
// fd. The same socket may be given to several loops: each duplicates the
// descriptor, and the kernel wakes one of them per connection (EPOLLEXCLUSIVE).
// fd stays the caller's. accept owns the descriptor that it is given.
func (l *Loop) Listen(fd int, accept func(fd int, remote netip.AddrPort)) (*Listener, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate listener: %w", err)
	}
	ln := &Listener{loop: l, accept: accept, fresh: -1, complained: -complaintInterval}
	if err = unix.SetNonblock(own, true); err == nil {
		ln.reg, err = l.register(own, ln, listenEvents, true)
	}
	if err != nil {
		_ = unix.Close(own)
		return nil, fmt.Errorf("listen: %w", err)
	}
	return ln, nil
}

// Close stops accepting on this loop.
func (ln *Listener) Close() {
	ln.resume.Stop()
	ln.reg.Close()
}

// Abort is called when accept panicked: that connection is lost, the listener
// lives on.
func (ln *Listener) Abort(error) {
	if ln.fresh < 0 {
		return
	}
	if reg := ln.loop.registration(ln.fresh); reg.Open() {
		reg.Close()
	} else {
		_ = unix.Close(ln.fresh)
	}
	ln.fresh = -1
}

// Ready accepts what has arrived. The listener is level-triggered: what is
// left over raises the next event, on this loop or on another.
func (ln *Listener) Ready(Events) {
	for range maxAccepts {
		fd, remote, e := Accept(int(ln.reg.fd))
		switch e {
		case 0:
			ln.loop.stats.Accepted++
			ln.fresh = fd
			ln.accept(fd, remote)
			ln.fresh = -1
			if !ln.reg.Open() {
				return
			}
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ECONNABORTED:
		default: // EMFILE, ENFILE, ENOBUFS, ENOMEM
			ln.pause(e)
			return
		}
	}
}

// pause takes the listener out of epoll for a while.
func (ln *Listener) pause(why error) {
	ln.loop.stats.AcceptPauses++
	if now := ln.loop.Now(); now-ln.complained >= complaintInterval {
		ln.complained = now
		ln.loop.log.Warn("pause accepting", "loop", ln.loop.name,
			"listener", LocalAddr(int(ln.reg.fd)), "for", acceptPause, "error", why)
	}
	ln.reg.mute()
	ln.resume = ln.loop.After(acceptPause, func() {
		if err := ln.reg.unmute(listenEvents); err != nil {
			ln.pause(err)
		}
	})
}
