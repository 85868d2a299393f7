// SPDX-License-Identifier: Apache-2.0

package node

import (
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

type balancer struct{}

func (balancer) Pick(svc *mesh.Service, port int, tried []*mesh.Endpoint) *mesh.Endpoint {
next:
	for _, e := range svc.Endpoints {
		for _, t := range tried {
			if t == e {
				continue next
			}
		}
		return e
	}
	return nil
}
func (balancer) Take(svc *mesh.Service, port int, e *mesh.Endpoint)              {}
func (balancer) Drop(e *mesh.Endpoint, svc *mesh.Service, port int)              {}
func (balancer) Release(e *mesh.Endpoint, svc *mesh.Service, port int)           {}
func (balancer) Settle(e *mesh.Endpoint, svc *mesh.Service, port int, err error) {}
func (n *Node) balanceView(svc *mesh.Service, e *mesh.Endpoint, v *api.Endpoint) {}
