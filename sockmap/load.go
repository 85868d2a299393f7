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
)

// kernelState is what is loaded: the maps that all programs share, pinned, and
// the programs attached and pinned.
type kernelState struct {
	maps map[string]*ebpf.Map
	dir  string
	// adopted says that the maps are those of an earlier process.
	adopted bool
}

// scratch maps are each program's own; constants are compared when programs
// are.
const (
	scratchMap   = "enrolling"
	constantsMap = ".rodata"
	constantsPin = "constants" // bpffs has no names with dots
)

// load makes sure that the state below p is that of this build: adopts what
// fits, replaces what doesn't, and never leaves a moment in which a hook that
// was attached isn't.
func load(p *place, root *cgroupRoot, opts *Options) (_ *kernelState, err error) {
	// 5.10 charges BPF memory to RLIMIT_MEMLOCK.
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("remove memory lock limit: %w", err)
	}
	spec, err := captureSpec(root, opts)
	if err != nil {
		return nil, err
	}
	earlier, err := p.others()
	if err != nil {
		return nil, err
	}
	adopted := exists(p.current())
	state := p.current()
	if !adopted {
		if state, err = p.stage(); err != nil {
			return nil, err
		}
	}

	replacements, err := pinnedMaps(spec, mapsDir(state))
	if err != nil {
		return nil, err
	}
	defer closeMaps(replacements)
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	if err != nil {
		return nil, fmt.Errorf("load programs: %w", err)
	}
	defer coll.Close()

	same, err := sameConstants(coll.Maps[constantsMap], mapsDir(state))
	if err != nil {
		return nil, err
	}
	for name, m := range coll.Maps {
		if name == scratchMap || name == constantsMap || replacements[name] != nil {
			continue
		}
		same = false // programs must be moved to it
		if err := replacePin(m, filepath.Join(mapsDir(state), name)); err != nil {
			return nil, err
		}
	}
	var earlierLinks []string
	for _, dir := range earlier {
		earlierLinks = append(earlierLinks, linksDir(dir))
	}
	for i := range hooks {
		h := &hooks[i]
		if err := h.install(coll.Programs[h.program], root, linksDir(state), earlierLinks, same); err != nil {
			return nil, err
		}
	}
	if !same {
		if err := replacePin(coll.Maps[constantsMap], filepath.Join(mapsDir(state), constantsPin)); err != nil {
			return nil, err
		}
	}
	if !adopted {
		if err := p.publish(state); err != nil {
			return nil, err
		}
		state = p.current()
	}
	for _, dir := range earlier {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove state of another layout: %w", err)
		}
	}
	for i := range hooks {
		if err := hooks[i].verify(root, linksDir(state)); err != nil {
			return nil, err
		}
	}

	k := &kernelState{maps: make(map[string]*ebpf.Map), dir: state, adopted: adopted}
	for name, m := range coll.Maps {
		if name == scratchMap || name == constantsMap {
			continue
		}
		if k.maps[name], err = m.Clone(); err != nil {
			k.close()
			return nil, fmt.Errorf("keep map %s: %w", name, err)
		}
	}
	return k, nil
}

func (k *kernelState) close() { closeMaps(k.maps) }

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
	constants := map[string]any{
		"have_set_retval": flag(opts.features.setRetval),
		"have_pid":        flag(opts.features.pid),
		"have_probe_read": flag(opts.features.probeRead),
		"have_mptcp":      flag(opts.features.mptcp),
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
