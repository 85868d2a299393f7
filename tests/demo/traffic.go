// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/tests/testnet"
	"github.com/meshproxy/meshproxy/tests/workload"
)

// traffic is what a client has reported so far.
type traffic struct {
	last     workload.Stats // the latest report
	requests int
	errors   int
	err      string // the latest error
	servers  map[string]int
	// clients are the addresses that servers saw this client at.
	clients map[netip.Addr]bool
	// disagree: accept and getpeername told a server different things.
	disagree bool
	peer     string

	process *testnet.Process
	next    int // line
}

func newTraffic(p *testnet.Process) *traffic {
	return &traffic{process: p, servers: map[string]int{}, clients: map[netip.Addr]bool{}}
}

// read takes in the reports since the last time.
func (t *traffic) read() {
	var lines []string
	lines, t.next = t.process.Stdout().Lines(t.next)
	for _, line := range lines {
		var s workload.Stats
		if json.Unmarshal([]byte(line), &s) != nil || s.Event != workload.EventStats {
			continue
		}
		t.add(s)
	}
}

func (t *traffic) add(s workload.Stats) {
	t.last = s
	t.requests += s.Requests
	t.errors += s.Errors
	if s.Error != "" {
		t.err = s.Error
	}
	if s.Peer != "" {
		t.peer = s.Peer
	}
	for name, n := range s.Servers {
		t.servers[name] += n
	}
	if s.Seen == nil {
		return
	}
	if addr, err := netip.ParseAddrPort(s.Seen.Accepted); err == nil {
		t.clients[addr.Addr().Unmap()] = true
	}
	if s.Seen.Accepted != s.Seen.Peer {
		t.disagree = true
	}
}

// seenFrom reports whether servers saw the client at this address only.
func (t *traffic) seenFrom(addr netip.Addr) bool {
	return len(t.clients) == 1 && t.clients[addr] && !t.disagree
}

// clientText lists where servers saw the client.
func (t *traffic) clientText() string {
	var all []string
	for addr := range t.clients {
		all = append(all, addr.String())
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// answeredBy reports whether these servers answered, and no other.
func (t *traffic) answeredBy(names []string) bool {
	return slices.Equal(slices.Sorted(maps.Keys(t.servers)), slices.Sorted(slices.Values(names)))
}
