// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// The state passes from one process to the next in steps, each of which can
// fail without a trace:
//
//	the one that was there       the one that follows
//	Lock                    →    Open, with that lock: loads, attaches nothing
//	                             Prepare: fills maps of its own, if it has any
//	Yield
//	                             TakeOver: attaches
//	(or TakeBack)                Commit
//
// Where both have the same layout they share maps, and the links get the new
// programs in place. Where they don't, the new programs run beside the old ones
// until Commit, save those that decide about connections: these are replaced in
// place, too. The process before keeps its own links open until it closes, so
// that its sockets keep the names that it gave them.

// Lock returns the descriptor of the lock on the state, for the process that is
// to follow. It stays the Capture's.
func (c *Capture) Lock() int { return int(c.place.lock.Fd()) }

// Apart reports whether the state is not shared with the process before: the
// layouts differ, or the size of a map.
func (c *Capture) Apart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kernel.apart
}

// InForce reports whether this process's programs are: they are not before
// TakeOver, nor, where state of another layout is there, before the first Apply.
func (c *Capture) InForce() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kernel.pending == nil
}

// Prepare fills the maps if no other process uses them, so that less is left to
// do in TakeOver.
func (c *Capture) Prepare(s State) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("check state: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.replaces() {
		return nil
	}
	return c.write(&s)
}

// TakeOver puts the programs in force. The process before has called Yield.
func (c *Capture) TakeOver() error {
	if err := c.Heartbeat(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kernel.pending == nil {
		return errors.New("take over: nothing is handed over")
	}
	return c.install()
}

// Commit ends the take-over: there is no way back.
func (c *Capture) Commit() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.place.shared = false
	return c.dropOthers()
}

// Yield leaves the state to the process that follows. Flow, OwnSocket and Stats
// go on working; everything that changes the state fails with ErrYielded, and the
// channel of Events is closed.
func (c *Capture) Yield() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return err
	}
	for i := range hooks {
		l, err := link.LoadPinnedLink(filepath.Join(linksDir(c.kernel.dir), hooks[i].name), nil)
		if err != nil {
			c.dropKept()
			return fmt.Errorf("keep link %s: %w", hooks[i].name, err)
		}
		if hooks[i].decides {
			l.Close()
			continue
		}
		c.kept = append(c.kept, l)
	}
	c.yielded, c.place.shared = true, true
	c.background.stop()
	c.background = nil
	return nil
}

func (c *Capture) dropKept() {
	for _, k := range c.kept {
		k.Close()
	}
	c.kept = nil
}

// Marker marks a socket as the node's own; the client may be zero.
type Marker func(fd int, client netip.AddrPort) error

// MarkBy has sockets marked by m from now on: after Yield to a process with
// state of its own.
func (c *Capture) MarkBy(m Marker) { c.marker.Store(&m) }

// TakeBack undoes Yield and all that the process to which it was yielded has
// done since, which must have ended. There is a new channel of Events, and
// inbound listeners have to be set again.
func (c *Capture) TakeBack() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.yielded {
		return nil
	}
	c.marker.Store(nil)
	if err := c.restore(); err != nil {
		return fmt.Errorf("take capture back: %w", err)
	}
	return nil
}

// restore puts the programs and maps of this process in force again.
func (c *Capture) restore() error {
	spec, err := captureSpec(c.root, &c.opts)
	if err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: c.kernel.maps})
	if err != nil {
		return fmt.Errorf("load programs: %w", err)
	}
	// Nothing is known of what is pinned, so all of it is pinned anew.
	c.kernel.pending, c.kernel.adopted = &pending{coll: coll}, true
	dirs, err := c.place.others()
	if err == nil {
		err = c.kernel.openFormerFlows(append(dirs, c.place.staged(), c.kernel.dir))
	}
	if err != nil {
		c.kernel.forgetPending()
		return err
	}
	c.events = make(chan Event, cap(c.events))
	c.yielded = false
	if err := c.install(); err != nil {
		c.yielded = true
		return err
	}
	c.place.shared = false
	c.dropKept()
	return c.dropOthers()
}
