// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var here = mesh.Node{Name: "n1", Locality: mesh.Locality{Region: "eu", Zone: "1"}}

// seeded returns a balancer whose random numbers are always the same ones. It
// is for one goroutine.
func seeded() *Balancer {
	return New(Options{Node: here, Random: rand.New(rand.NewPCG(1, 2)).Uint64})
}

// places are the localities that test endpoints are named after.
var places = map[string]struct {
	node string
	mesh.Locality
}{
	"node":    {"n1", mesh.Locality{Region: "eu", Zone: "1"}},
	"zone":    {"n2", mesh.Locality{Region: "eu", Zone: "1"}},
	"region":  {"n3", mesh.Locality{Region: "eu", Zone: "2"}},
	"far":     {"n4", mesh.Locality{Region: "us", Zone: "1"}},
	"unknown": {},
}

// endpointAt returns the i-th endpoint in a place.
func endpointAt(place string, i int) *mesh.Endpoint {
	p := places[place]
	return &mesh.Endpoint{
		Address: netip.AddrFrom4([4]byte{10, place[0], byte(i >> 8), byte(i)}), Ports: []uint16{8080},
		Node: p.node, Locality: p.Locality,
	}
}

func serviceOf(policy mesh.Balance, endpoints ...*mesh.Endpoint) *mesh.Service {
	return &mesh.Service{Name: mesh.ParseName("web"), Ports: []mesh.Port{{Port: 80}}, Balance: policy, Endpoints: endpoints}
}

// weighted returns a service on other nodes of the zone with the weights given.
func weighted(policy mesh.Balance, weights ...uint32) *mesh.Service {
	s := serviceOf(policy)
	for i, w := range weights {
		e := endpointAt("zone", i)
		e.Weight = w
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func mustPick(t testing.TB, b *Balancer, s *mesh.Service, tried ...*mesh.Endpoint) Picked {
	t.Helper()
	p, ok := b.Pick(s, 0, tried)
	if !ok {
		t.Fatal("no endpoint")
	}
	return p
}

// fail lets n connections to the endpoint fail.
func fail(b *Balancer, s *mesh.Service, e *mesh.Endpoint, n int) {
	for range n {
		p, ok := b.Hold(s, 0, e)
		if !ok {
			panic(fmt.Sprintf("cannot hold %v", e))
		}
		b.Done(p, OutcomeConnectFailed)
	}
}
