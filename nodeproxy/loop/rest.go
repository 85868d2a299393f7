// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// rest is how a loop waits that has nothing to do but to look after its timers:
// parked with the runtime's own poller, as a goroutine that reads from a socket
// is. A system call that waits, held or not, keeps sysmon looking for 10 ms
// whether somebody wants its P, some forty wake-ups each time: 0.3 % of a core
// for four ticks a second.
//
// The runtime's poller watches the loop's only meanwhile. It would otherwise wake
// a thread for each event of a loop that works, and the kernel walks through all
// that a poller watches when it becomes part of another.
type rest struct {
	file *os.File // a descriptor of the loop's poller; nil while the loop works
	conn syscall.RawConn
}

// begin has the runtime watch epoll.
func (r *rest) begin(epoll int) error {
	fd, err := unix.FcntlInt(uintptr(epoll), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate epoll: %w", err)
	}
	r.file = os.NewFile(uintptr(fd), "loop")
	if r.conn, err = r.file.SyscallConn(); err != nil {
		r.end()
		return fmt.Errorf("watch epoll: %w", err)
	}
	return nil
}

func (r *rest) end() {
	if r.file != nil {
		_ = r.file.Close()
		r.file, r.conn = nil, nil
	}
}

// sleep waits without a thread. It returns like wait.
func (p *poller) sleep(events []unix.EpollEvent) int {
	if p.rest.file == nil && p.rest.begin(p.epoll) != nil {
		return p.release(events) // without descriptors, say
	}
	n := 0
	err := p.rest.conn.Read(func(uintptr) bool {
		n, _ = p.keep(events, 0)
		return n > 0
	})
	if err != nil { // the runtime can't watch it
		p.rest.end()
		return p.release(events)
	}
	return n
}

// look finds out whether the loop has something to do: an event of a handler says
// so, and one of the clock alone that it has not.
func (p *poller) look(events []unix.EpollEvent) {
	for i := range events {
		switch int(events[i].Fd) {
		case p.post:
		case p.clock:
			p.idle = true
		default:
			p.idle = false
			p.rest.end()
			return
		}
	}
}
