// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxProofs bounds what is remembered of one bundle; a peer could show one leaf
// after the other.
const maxProofs = 4096

// proofs are the chains that were found to lead to the roots of a bundle. Peers
// that open a connection per stream show the same leaf each time, and the
// signatures in a chain are as good the second time. What depends on the time,
// the validity of each certificate, is looked at again; what depends on the roots
// does not change, since bundles don't.
type proofs struct {
	mu    sync.RWMutex
	known map[[sha256.Size]byte]proof
}

// proof is what a chain has proven, and when that holds.
type proof struct {
	id            spiffeid.ID
	begins, until time.Time
}

func (p *proofs) find(chain [sha256.Size]byte, now time.Time) (spiffeid.ID, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	found, ok := p.known[chain]
	if !ok || now.Before(found.begins) || now.After(found.until) {
		return spiffeid.ID{}, false
	}
	return found.id, true
}

// keep remembers a chain with the way that was found from its leaf to a root.
func (p *proofs) keep(chain [sha256.Size]byte, id spiffeid.ID, way []*x509.Certificate) {
	found := proof{id: id, begins: way[0].NotBefore, until: way[0].NotAfter}
	for _, c := range way[1:] {
		if c.NotBefore.After(found.begins) {
			found.begins = c.NotBefore
		}
		if c.NotAfter.Before(found.until) {
			found.until = c.NotAfter
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil || len(p.known) >= maxProofs {
		p.known = make(map[[sha256.Size]byte]proof)
	}
	p.known[chain] = found
}

// digest is a hash of certificates in their order.
func digest(certs []*x509.Certificate) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, c := range certs {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(c.Raw)))
		h.Write(size[:])
		h.Write(c.Raw)
	}
	h.Sum(sum[:0])
	return sum
}
