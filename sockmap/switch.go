// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
)

// Programs that have a flow map of their own (another layout, or another size) are
// put in place of others one by one. Meanwhile, and for as long as a SYN is sent
// again, connections are accepted by the ones that were decided about by the others.
// So sk_lookup comes first, and looks for flows in the map of the programs before
// as well; else it would refuse what it takes for strangers' connections.
//
// For that the map flows means the same in all layouts, as far as its keys go; as in
// former.go, keys that change take another name for their map.

const formerFlowsMap = "former_flows"

// formerFlowsKept is how long the flows of the programs before are looked at. A SYN
// that found the backlog full is sent again after one, three and seven seconds.
const formerFlowsKept = 10 * time.Second

// openFormerFlows makes the map by which sk_lookup finds the flows of the programs
// that are in force, which are pinned in one of the directories, unless these are
// the very same as k's.
func (k *kernelState) openFormerFlows(dirs []string) error {
	spec, err := bpf.LoadInbound()
	if err != nil {
		return fmt.Errorf("read inbound program: %w", err)
	}
	ms := spec.Maps[formerFlowsMap]
	ms.Contents = nil
	flows, err := k.findFormerFlows(dirs)
	if err != nil {
		return err
	}
	if flows != nil {
		defer flows.Close()
		ms.InnerMap.ValueSize, ms.InnerMap.Value = flows.ValueSize(), nil
		ms.Contents = []ebpf.MapKV{{Key: uint32(0), Value: flows}}
	}
	m, err := ebpf.NewMap(ms)
	if err != nil {
		return fmt.Errorf("keep flows of the programs before: %w", err)
	}
	if k.formerFlows != nil {
		k.formerFlows.Close()
	}
	k.formerFlows, k.follows = m, flows != nil
	return nil
}

func (k *kernelState) findFormerFlows(dirs []string) (*ebpf.Map, error) {
	own := k.maps[bpf.CaptureMapFlows]
	id, err := mapID(own)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		m, err := ebpf.LoadPinnedMap(filepath.Join(mapsDir(dir), bpf.CaptureMapFlows), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load flows of the programs before: %w", err)
		}
		other, err := mapID(m)
		if err == nil && other != id && m.Type() == own.Type() && m.KeySize() == own.KeySize() && m.Flags() == own.Flags() {
			return m, nil
		}
		m.Close()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", m, err)
	}
	id, _ := info.ID()
	return id, nil
}

// forgetFormerFlows lets go of the flows of the programs before.
func (k *kernelState) forgetFormerFlows() error {
	if err := k.formerFlows.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget flows of the programs before: %w", err)
	}
	return nil
}
