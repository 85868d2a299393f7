// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// Direct connections may be older than the layout. Their sockets keep the programs
// and maps with which they began, but those know nothing of policy as it changes,
// and nobody hears of them when the process before has ended. So whoever drops the
// state of another layout takes the records of what is open into its own, where
// they end with the client's socket as all do (bpf/direct.c). No switch reaches those
// programs afterwards: what they splice turns to TCP first, if the process before
// has not seen to that.
//
// For that the maps directs and names mean the same in all layouts, whatever else
// changes: a structure of theirs that changes takes another name for its map
// (TestKeptFormats).

// dropOthers removes the state of other layouts, and what was being built.
func (c *Capture) dropOthers() error {
	dirs, err := c.place.others()
	if err != nil {
		return err
	}
	for _, dir := range append(dirs, c.place.staged()) {
		if err := stopSplicing(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("connections between workloads that are spliced since another version stay so", "state", filepath.Base(dir), "error", err)
		}
		n, err := c.keepDirects(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist): // there are none
		case err != nil:
			c.log.Warn("connections between workloads that are open since another version are not followed", "state", filepath.Base(dir), "error", err)
		case n > 0:
			c.log.Info("connections between workloads are open since another version", "state", filepath.Base(dir), "connections", n)
		}
	}
	return c.place.dropOthers()
}

// switchMap says where in a layout's node its switch for splicing is: the types of
// another layout, which the kernel has, may be read by CAP_SYS_ADMIN only.
const switchMap = "switch"

func (k *kernelState) pinSwitch() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: switchMap, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: uint32(unsafe.Offsetof(bpf.CaptureNode{}.Splicing))}},
	})
	if err != nil {
		return fmt.Errorf("create map %s: %w", switchMap, err)
	}
	defer m.Close()
	return replacePin(m, filepath.Join(mapsDir(k.dir), switchMap))
}

// stopSplicing turns to TCP what is spliced by the programs of the state in dir.
func stopSplicing(dir string) error {
	where, err := keptMap[uint32, uint32](dir, switchMap)
	if err != nil {
		return err
	}
	defer where.Close()
	var offset uint32
	if err := where.Lookup(uint32(0), &offset); err != nil {
		return fmt.Errorf("read map %s: %w", switchMap, err)
	}
	node, err := ebpf.LoadPinnedMap(filepath.Join(mapsDir(dir), bpf.CaptureMapNode), nil)
	if err != nil {
		return fmt.Errorf("load map %s: %w", bpf.CaptureMapNode, err)
	}
	defer node.Close()
	if offset%4 != 0 || uint64(offset)+4 > uint64(node.ValueSize()) {
		return fmt.Errorf("map %s: there is nothing at %d of the %d bytes of a node", switchMap, offset, node.ValueSize())
	}
	mem, err := mapMemory(node)
	if err != nil {
		return err
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&mem[offset])), uint32(bpf.CaptureSplicingSPLICING_OFF))
	return unix.Munmap(mem)
}

// former is the state of another layout, as far as it can be read.
type former struct {
	directs *ebpf.Map
	names   map[uint32]entity
}

func openFormer(dir string) (_ *former, err error) {
	names, err := keptMap[bpf.CaptureName, uint32](dir, bpf.CaptureMapNames)
	if err != nil {
		return nil, err
	}
	defer names.Close()
	ids, err := contents[bpf.CaptureName, uint32](names)
	if err != nil {
		return nil, err
	}
	f := &former{names: make(map[uint32]entity, len(ids))}
	for key, id := range ids {
		if f.names[id], err = parseEntity(key); err != nil {
			return nil, err
		}
	}
	f.directs, err = keptMap[uint64, bpf.CaptureDirect](dir, bpf.CaptureMapDirects)
	return f, err
}

// keptMap opens a pinned map that has that shape of keys and values.
func keptMap[K, V any](dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(mapsDir(dir), name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("load map %s: %w", name, err)
	}
	var k K
	var v V
	if uintptr(m.KeySize()) != unsafe.Sizeof(k) || uintptr(m.ValueSize()) != unsafe.Sizeof(v) {
		m.Close()
		return nil, fmt.Errorf("map %s has keys of %d and values of %d bytes", name, m.KeySize(), m.ValueSize())
	}
	return m, nil
}

// dialling is how long a connection is waited for whose connect(2) was decided by
// the programs before and whose addresses they have not noted yet; it takes some
// microseconds.
const dialling = 100 * time.Millisecond

// keepDirects takes over what is open by the state in dir, and returns how many
// connections that were.
func (c *Capture) keepDirects(dir string) (kept int, err error) {
	f, err := openFormer(dir)
	if err != nil {
		return 0, err
	}
	defer f.directs.Close()
	for deadline := time.Now().Add(dialling); ; time.Sleep(time.Millisecond) {
		open, err := contents[uint64, bpf.CaptureDirect](f.directs)
		if err != nil {
			return kept, err
		}
		waiting := false
		for cookie, d := range open {
			switch {
			case d.Closed != 0 || d.Workload == 0:
			case d.Flags&bpf.CaptureDirectFlagsDIRECT_ADDRESSED == 0:
				waiting = true
			default:
				ok, err := c.keepDirect(f, cookie, d)
				if err != nil {
					return kept, err
				}
				if ok {
					kept++
				}
			}
		}
		if !waiting || time.Now().After(deadline) {
			return kept, nil
		}
	}
}

// keepDirect takes one over. What the kernel knows of it besides belongs to the
// programs before: those of this layout see the client's end close, and no other.
func (c *Capture) keepDirect(f *former, cookie uint64, d bpf.CaptureDirect) (bool, error) {
	for _, id := range []*uint32{&d.Workload, &d.Service, &d.Endpoint} {
		var err error
		if *id, err = c.renumber(f, *id); err != nil {
			return false, err
		}
	}
	d.Flags |= bpf.CaptureDirectFlagsDIRECT_ESTABLISHED
	d.Sockets = [2]uint64{}
	own := c.kernel.maps[bpf.CaptureMapDirects]
	switch err := own.Update(cookie, d, ebpf.UpdateNoExist); {
	case errors.Is(err, ebpf.ErrKeyExist):
		return false, nil // before a crash, or a moment ago
	case err != nil:
		return false, fmt.Errorf("keep connection: %w", err)
	}
	// It may have closed before it was there to be taken away.
	var again bpf.CaptureDirect
	err := f.directs.Lookup(cookie, &again)
	if err == nil && again.Closed == 0 {
		return true, nil
	}
	if err := own.Delete(cookie); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("forget connection: %w", err)
	}
	return false, nil
}

// renumber returns this layout's number for what has one in another.
func (c *Capture) renumber(f *former, id uint32) (uint32, error) {
	e, ok := f.names[id]
	if !ok {
		return 0, nil
	}
	return c.names.assign(e.kind, e.name)
}
