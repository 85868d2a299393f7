// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// BenchmarkOneEndpoint is the whole way from an update with one changed
// endpoint of 100 000 to the snapshot.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, shape := range []struct{ services, endpoints int }{{1, 100000}, {1000, 100}, {10000, 10}} {
		for _, sources := range []int{1, 2} {
			b.Run(fmt.Sprintf("%dx%d/sources=%d", shape.services, shape.endpoints, sources), func(b *testing.B) {
				m, list := bigMerger(b, shape.services, shape.endpoints, sources)
				previous := m.build(nil)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					list = slices.Clone(list)
					svc := *list[i%len(list)]
					svc.Endpoints = slices.Clone(svc.Endpoints)
					e := *svc.Endpoints[0]
					e.Health ^= mesh.HealthUnhealthy
					svc.Endpoints[0], list[i%len(list)] = &e, &svc
					m.take(delivery{0, Update{Services: list}})
					previous = m.build(previous)
				}
			})
		}
	}
}

func bigMerger(b *testing.B, services, endpoints, sources int) (*Merger, []*mesh.Service) {
	var all []Source
	for i := range sources {
		all = append(all, newScripted(fmt.Sprint("s", i)))
	}
	m, err := NewMerger(Options{Sources: all, VirtualIPs: ranges})
	if err != nil {
		b.Fatal(err)
	}
	var list []*mesh.Service
	n := uint32(0)
	for i := range services {
		s := service(fmt.Sprintf("svc%06d", i))
		for range endpoints {
			n++
			s.Endpoints = append(s.Endpoints, &mesh.Endpoint{
				Address: netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), Ports: []uint16{8080},
			})
		}
		list = append(list, s)
	}
	m.take(delivery{0, Update{Services: list}})
	if sources > 1 {
		m.take(delivery{1, Update{Services: []*mesh.Service{service("other")}}})
	}
	return m, list
}
