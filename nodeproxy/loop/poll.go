// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller waits for descriptors and for the first timer.
//
// The time of that timer is a timerfd's, not epoll_wait's: it is set when the
// first timer changes, a few times a second, while a timeout would start and
// cancel a kernel timer on each wait, which costs a virtual machine an exit.
type poller struct {
	epoll int
	clock int           // timerfd, edge-triggered and never read
	alarm time.Duration // when it rings, in the loop's time; 0: not set
	hold  bool
	post  int  // the inbox's eventfd
	idle  bool // the last wait ended without an event of a handler
	rest  rest
}

// open makes the descriptors. hold is Options.HoldProcessor.
func (p *poller) open(hold bool) (err error) {
	p.hold = hold && preemptible(os.Getenv("GODEBUG"))
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create epoll: %w", err)
	}
	// The runtime watches nothing that could block; waits don't care.
	if err = unix.SetNonblock(p.epoll, true); err != nil {
		_ = unix.Close(p.epoll)
		return fmt.Errorf("make epoll non-blocking: %w", err)
	}
	if p.clock, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		_ = unix.Close(p.epoll)
		return fmt.Errorf("create timerfd: %w", err)
	}
	// The table has no handler for it, so delivery skips it: being awake is all
	// that the event is for. Each expiry raises a new edge.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(p.clock)}
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, p.clock, &ev); err != nil {
		p.close()
		return fmt.Errorf("register timerfd: %w", err)
	}
	return nil
}

func (p *poller) close() {
	p.rest.end()
	_ = unix.Close(p.clock)
	_ = unix.Close(p.epoll)
}

// preemptible reports whether the runtime interrupts goroutines with a signal.
// Only then may a wait hold its P: the signal ends epoll_wait with EINTR, which
// is never restarted (signal(7)), so that a garbage collection needn't wait.
func preemptible(godebug string) bool {
	for setting := range strings.SplitSeq(godebug, ",") {
		if setting == "asyncpreemptoff=1" {
			return false
		}
	}
	return true
}

// poll returns what is ready, without waiting.
func (p *poller) poll(events []unix.EpollEvent) int {
	n, _ := p.keep(events, 0)
	return n
}

// wait returns the number of events; 0 when there was an interruption.
//
// A wait that enters the scheduler loses its P to sysmon within 20 µs when no
// other P is idle. Sysmon then never gets to sleep long, and each wait costs
// futex calls on both sides. Holding the P costs the others nothing as long as
// there are more of them than loops. Sysmon interrupts a P held for 10 ms: then
// there is nothing to do, and the wait goes on as the scheduler likes it.
// Measured on two cores: 15 to 20 % less CPU for a round trip. A loop that has
// nothing to do at all rests.
func (p *poller) wait(events []unix.EpollEvent) int {
	if !p.hold {
		return p.release(events)
	}
	var n int
	if p.idle {
		n = p.sleep(events)
	} else if held, e := p.keep(events, -1); e == 0 {
		n = held
	} else {
		n = p.release(events)
	}
	p.look(events[:n])
	return n
}

// keep waits without a word to the scheduler.
func (p *poller) keep(events []unix.EpollEvent, timeout int) (int, unix.Errno) {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(timeout), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// release waits as the scheduler likes it.
func (p *poller) release(events []unix.EpollEvent) int {
	n, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), forever, 0, 0)
	if e != 0 {
		return 0 // EINTR
	}
	return int(n)
}

const forever = ^uintptr(0)

// setAlarm makes a wait end at due, d from now, at the latest.
func (p *poller) setAlarm(due, d time.Duration) {
	if p.alarm != 0 && p.alarm <= due {
		return // rings early enough; rung, it is set again
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	if err := unix.TimerfdSettime(p.clock, 0, &spec, nil); err != nil {
		panic("set timerfd: " + err.Error()) // EBADF or EINVAL: a bug
	}
	p.alarm = due
}

// rung forgets an alarm that is over.
func (p *poller) rung(now time.Duration) {
	if p.alarm <= now {
		p.alarm = 0
	}
}
