// SPDX-License-Identifier: Apache-2.0

package mesh

// slot is the small number by which the indexes refer to a service. It stays
// the same while the service changes, so that a new *Service does not touch
// the index entries of its unchanged endpoints.
type slot uint32

const slotChunk = 256

// slots maps slots to services; a change copies one chunk and the list of
// chunks.
type slots struct {
	chunks []*[slotChunk]*Service
	next   slot
	free   []slot
}

func (s *slots) get(n slot) *Service { return s.chunks[n/slotChunk][n%slotChunk] }

type slotsEdit struct {
	slots
	owned map[slot]bool // by chunk; nil until the first change
}

func (s slots) edit() *slotsEdit { return &slotsEdit{slots: s} }

func (e *slotsEdit) begin() {
	if e.owned == nil {
		e.owned = make(map[slot]bool)
		e.chunks = append([]*[slotChunk]*Service(nil), e.chunks...)
		e.free = append([]slot(nil), e.free...)
	}
}

func (e *slotsEdit) set(n slot, svc *Service) {
	e.begin()
	c := n / slotChunk
	if !e.owned[c] {
		chunk := *e.chunks[c]
		e.chunks[c] = &chunk
		e.owned[c] = true
	}
	e.chunks[c][n%slotChunk] = svc
}

func (e *slotsEdit) add(svc *Service) slot {
	e.begin()
	var n slot
	if l := len(e.free); l > 0 {
		n, e.free = e.free[l-1], e.free[:l-1]
	} else {
		n = e.next
		e.next++
		if int(n/slotChunk) == len(e.chunks) {
			e.chunks = append(e.chunks, new([slotChunk]*Service))
			e.owned[n/slotChunk] = true
		}
	}
	e.set(n, svc)
	return n
}

func (e *slotsEdit) remove(n slot) {
	e.set(n, nil)
	e.free = append(e.free, n)
}
