// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bytes"
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// names gives workloads and services the numbers by which the programs know
// them. A name keeps its number while it is part of the mesh, over restarts;
// numbers are never given twice, so that a late reader of an event or a
// counter can't take one for another.
type names struct {
	table  *table[bpf.CaptureName, uint32]
	last   *uint32      // in the shared memory of struct node
	mu     sync.RWMutex // guards byID, which is read while connections are accepted
	byID   map[uint32]entity
	byName map[entity]uint32
}

// entity is what has a number.
type entity struct {
	kind string
	name mesh.Name
}

const (
	kindWorkload = "workload"
	kindService  = "service"
)

func openNames(m *ebpf.Map, last *uint32) (*names, error) {
	n := &names{last: last}
	return n, n.read(m)
}

// read forgets what is known and reads the map: another process may have changed
// it.
func (n *names) read(m *ebpf.Map) error {
	t, err := openTable[bpf.CaptureName, uint32](m)
	if err != nil {
		return err
	}
	byID, byName := make(map[uint32]entity), make(map[entity]uint32)
	for key, id := range t.have {
		e, err := parseEntity(key)
		if err != nil {
			return err
		}
		byID[id], byName[e] = e, id
	}
	n.table, n.byName = t, byName
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byID = byID
	return nil
}

func (e entity) key() (key bpf.CaptureName, err error) {
	ns := e.name.Namespace
	if ns == "" {
		ns = mesh.DefaultNamespace
	}
	s := e.kind + "/" + ns + "/" + e.name.Name
	if len(s) >= len(key.Bytes) {
		return key, fmt.Errorf("name %q is longer than %d bytes", s, len(key.Bytes)-1)
	}
	copy(key.Bytes[:], s)
	return key, nil
}

func parseEntity(key bpf.CaptureName) (entity, error) {
	s, _, _ := bytes.Cut(key.Bytes[:], []byte{0})
	parts := strings.SplitN(string(s), "/", 3)
	if len(parts) != 3 {
		return entity{}, fmt.Errorf("pinned name %q is malformed", s)
	}
	return entity{kind: parts[0], name: mesh.Name{Namespace: parts[1], Name: parts[2]}}, nil
}

func newEntity(kind string, name mesh.Name) entity {
	if name.Namespace == "" {
		name.Namespace = mesh.DefaultNamespace
	}
	return entity{kind: kind, name: name}
}

// assign returns the number of a name, a new one if it has none.
func (n *names) assign(kind string, name mesh.Name) (uint32, error) {
	e := newEntity(kind, name)
	if id, ok := n.byName[e]; ok {
		return id, nil
	}
	key, err := e.key()
	if err != nil {
		return 0, err
	}
	// Taken before it is used: a crash in between wastes a number.
	*n.last++
	id := *n.last
	if err := n.table.set(key, id); err != nil {
		return 0, err
	}
	n.byName[e] = id
	n.mu.Lock()
	n.byID[id] = e
	n.mu.Unlock()
	return id, nil
}

// retain forgets every name whose number is not in use.
func (n *names) retain(inUse map[uint32]bool) error {
	for id, e := range n.byID {
		if inUse[id] {
			continue
		}
		key, err := e.key()
		if err != nil {
			return err
		}
		if err := n.table.remove(key); err != nil {
			return err
		}
		delete(n.byName, e)
		n.mu.Lock()
		delete(n.byID, id)
		n.mu.Unlock()
	}
	return nil
}

// strange reports whether a name has a number that is not in use.
func (n *names) strange(inUse map[uint32]bool) bool {
	for id := range n.byID {
		if !inUse[id] {
			return true
		}
	}
	return false
}

// name returns the name that id stands for, zero if none. Unlike the rest it
// may be called from any goroutine.
func (n *names) name(id uint32) mesh.Name {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byID[id].name
}
