// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/sockmap/internal/capability"
)

// kernelState is what is loaded: the maps that all programs share, pinned, and
// the programs attached and pinned.
type kernelState struct {
	maps map[string]*ebpf.Map
	dir  string
	// adopted says that the state is that of an earlier process; apart, that
	// some of the maps are not, for their layout or size.
	adopted, apart bool
	// pending is what is loaded and not attached yet; nil once it is.
	pending *pending
	// formerFlows is what sk_lookup knows of the programs before; follows says that
	// there were some, with flows of their own.
	formerFlows *ebpf.Map
	follows     bool
	// switching is that of Options.
	switching func()
}

// pending is loaded, so that nothing is left that the verifier could refuse, and
// changes nothing so far.
type pending struct {
	coll *ebpf.Collection
	// pinned are the maps that this layout's state has already.
	pinned map[string]bool
	// same says that the attached programs have the same maps and constants.
	same bool
	// earlier are the directories of other layouts.
	earlier []string
}

// scratch maps are each program's own; constants are compared when programs
// are.
const (
	scratchMap   = "enrolling"
	constantsMap = ".rodata"
	constantsPin = "constants" // bpffs has no names with dots
)

// load loads the programs and opens the maps, those that are pinned or new ones.
// install puts them in force.
func load(p *place, root *cgroupRoot, opts *Options) (_ *kernelState, err error) {
	// 5.10 charges BPF memory to RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("remove memory lock limit: %w", err)
	}
	spec, err := captureSpec(root, opts)
	if err != nil {
		return nil, err
	}
	l := &pending{pinned: make(map[string]bool)}
	if l.earlier, err = p.others(); err != nil {
		return nil, err
	}
	k := &kernelState{maps: make(map[string]*ebpf.Map), dir: p.current(), adopted: exists(p.current()), pending: l, switching: opts.switching}
	replacements, err := pinnedMaps(spec, mapsDir(k.dir))
	if err != nil {
		return nil, err
	}
	defer closeMaps(replacements)
	for name := range replacements {
		l.pinned[name] = true
	}
	l.coll, err = newCollection(spec, replacements, opts)
	if err != nil {
		return nil, err
	}
	if l.same, err = sameConstants(l.coll.Maps[constantsMap], mapsDir(k.dir)); err != nil {
		k.close()
		return nil, err
	}
	for name, m := range l.coll.Maps {
		if name == scratchMap || name == constantsMap {
			continue
		}
		if !l.pinned[name] {
			l.same, k.apart = false, true // programs must be moved to it
		}
		if k.maps[name], err = m.Clone(); err != nil {
			k.close()
			return nil, fmt.Errorf("keep map %s: %w", name, err)
		}
	}
	if err := k.openFormerFlows(append([]string{k.dir}, l.earlier...)); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// newCollection loads the programs: without the direct way where the kernel's
// verifier does not follow all of it, since capture has to work there too.
func newCollection(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, opts *Options) (*ebpf.Collection, error) {
	co := ebpf.CollectionOptions{MapReplacements: maps}
	coll, err := ebpf.NewCollectionWithOptions(spec, co)
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) && lacking() == "" {
		opts.Logger.Warn("workloads of this node use the proxy among themselves", "error", refused)
		opts.features.direct = false
		if err := setConstants(spec, map[string]any{"have_direct": flag(false)}); err != nil {
			return nil, err
		}
		coll, err = ebpf.NewCollectionWithOptions(spec, co)
	}
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	return coll, nil
}

// lacking names the capabilities that programs take and the process doesn't have.
func lacking() string {
	has, err := capability.Effective()
	if err != nil {
		return "" // the kernel refuses all the same
	}
	return has.Lacks(capability.BPF, capability.NetAdmin, capability.PerfMon)
}

// unprivileged names the capabilities that the process lacks as the cause of an
// error. What the kernel says without them depends on what is loaded first, which
// is another program each time: that it isn't permitted, or that there is no such
// function.
func unprivileged(err error) error {
	if missing := lacking(); missing != "" {
		return fmt.Errorf("without %s: %w", missing, err)
	}
	return err
}

// install makes sure that the state below p is that of this build: adopts what
// fits, replaces what doesn't, and never leaves a moment in which a hook that
// was attached isn't. guard attaches sk_lookup, which knows what the programs
// before have decided, so it comes before flows get to new maps: first of all where
// these take the place of others in the same directory. enter is called when all
// hooks are attached but those that decide, which then follow one another within
// microseconds each.
//
// State of another layout stays beside until dropOthers: its programs go on
// keeping the records of what they have decided, and the new ones decide.
func (k *kernelState) install(p *place, root *cgroupRoot, guard, enter func() error) (err error) {
	l := k.pending
	if !k.adopted {
		if k.dir, err = p.stage(); err != nil {
			return err
		}
	}
	for name, m := range k.maps {
		if l.pinned[name] {
			continue
		}
		if err := replacePin(m, filepath.Join(mapsDir(k.dir), name)); err != nil {
			return err
		}
	}
	if err := k.pinSwitch(); err != nil {
		return err
	}
	steps := []func() error{enter, guard}
	if k.adopted {
		if err := guard(); err != nil {
			return err
		}
		steps = steps[:1]
	}
	for i := range hooks {
		h := &hooks[i]
		for h.decides && len(steps) > 0 {
			if err := steps[0](); err != nil {
				return err
			}
			steps = steps[1:]
		}
		if err := h.install(l.coll.Programs[h.program], root, linksDir(k.dir), linksDirs(l.earlier), l.same); err != nil {
			return err
		}
		k.switching()
	}
	if !l.same {
		if err := replacePin(l.coll.Maps[constantsMap], filepath.Join(mapsDir(k.dir), constantsPin)); err != nil {
			return err
		}
	}
	if !k.adopted {
		if err := p.publish(k.dir); err != nil {
			return err
		}
		k.dir = p.current()
	}
	for i := range hooks {
		if err := hooks[i].verify(root, linksDir(k.dir)); err != nil {
			return err
		}
	}
	k.forgetPending()
	return nil
}

func linksDirs(states []string) (dirs []string) {
	for _, dir := range states {
		dirs = append(dirs, linksDir(dir))
	}
	return dirs
}

func (k *kernelState) forgetPending() {
	if k.pending != nil && k.pending.coll != nil {
		k.pending.coll.Close()
	}
	k.pending = nil
}

func (k *kernelState) close() {
	k.forgetPending()
	if k.formerFlows != nil {
		_ = k.forgetFormerFlows() // sk_lookup stays
		k.formerFlows.Close()
	}
	closeMaps(k.maps)
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func captureSpec(root *cgroupRoot, opts *Options) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadCapture()
	if err != nil {
		return nil, fmt.Errorf("read programs: %w", err)
	}
	spec.Maps[bpf.CaptureMapFlows].MaxEntries = opts.MaxFlows
	for name, n := range map[string]uint32{bpf.CaptureMapSpliced: opts.maxSpliced, bpf.CaptureMapDirects: opts.maxDirects} {
		if n > 0 {
			spec.Maps[name].MaxEntries = n
		}
	}
	constants := map[string]any{
		"have_set_retval": flag(opts.features.setRetval),
		"have_pid":        flag(opts.features.pid),
		"have_probe_read": flag(opts.features.probeRead),
		"have_mptcp":      flag(opts.features.mptcp),
		"have_direct":     flag(opts.features.direct),
		"root_length":     uint32(len(root.path)),
	}
	return spec, setConstants(spec, constants)
}

func setConstants(spec *ebpf.CollectionSpec, constants map[string]any) error {
	for name, value := range constants {
		v, ok := spec.Variables[name]
		if !ok {
			// The compiler drops what no program uses.
			continue
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set constant %s: %w", name, err)
		}
	}
	return nil
}

// pinnedMaps opens the maps of the spec that are pinned in dir and still have
// its shape. One of another shape (a size that was configured) is replaced.
func pinnedMaps(spec *ebpf.CollectionSpec, dir string) (map[string]*ebpf.Map, error) {
	maps := make(map[string]*ebpf.Map)
	for name, ms := range spec.Maps {
		if name == scratchMap || name == constantsMap {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			closeMaps(maps)
			return nil, fmt.Errorf("load map %s: %w", name, err)
		}
		if err := ms.Compatible(m); err != nil {
			m.Close()
			continue
		}
		maps[name] = m
	}
	return maps, nil
}

// sameConstants says whether the attached programs were loaded with the same
// constants, which a program's tag does not tell.
func sameConstants(m *ebpf.Map, dir string) (bool, error) {
	old, err := ebpf.LoadPinnedMap(filepath.Join(dir, constantsPin), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("load constants: %w", err)
	}
	defer old.Close()
	if old.ValueSize() != m.ValueSize() {
		return false, nil
	}
	was, err := old.LookupBytes(uint32(0))
	if err != nil {
		return false, fmt.Errorf("read constants: %w", err)
	}
	is, err := m.LookupBytes(uint32(0))
	if err != nil {
		return false, fmt.Errorf("read constants: %w", err)
	}
	return bytes.Equal(was, is), nil
}
