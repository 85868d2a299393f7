// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"net/netip"
	"strconv"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// instance is one row of a target: a proxy in front of an instance of the
// service, or an application that does the TLS itself.
type instance struct {
	node, id string
	kind     string
	// service is the row's own name: that of the proxy, if it is one.
	service string
	// fronts is the id of the service instance behind the proxy.
	fronts  string
	address string // may be a name
	wan     string // for other datacenters
	port    uint16
	wanPort uint16
	local   uint16 // the application's port
	hbone   uint16 // where the node proxy takes hbone; 0: it does not say
	status  string
	// unchecked: it is critical because checks of it have not run yet.
	unchecked bool
	weights   weights
	locality  mesh.Locality
	vip       netip.Addr
}

// MetaHBONE is the key of a row's metadata under which a node proxy says on
// which port it takes hbone.
const MetaHBONE = "meshproxy-hbone"

func newInstance(r *row) instance {
	in := instance{
		node: r.Node.Node, id: r.Service.ID, kind: r.Service.Kind, service: r.Service.Service,
		fronts:  r.Service.Proxy.DestinationServiceID,
		address: r.Service.Address,
		port:    asPort(r.Service.Port),
		local:   asPort(r.Service.Proxy.LocalServicePort),
		weights: weights(r.Service.Weights),
	}
	in.status, in.unchecked = worstStatus(r)
	if in.address == "" {
		in.address = r.Node.Address
	}
	// structs.CheckServiceNode.BestAddress: the service's own WAN address,
	// then the node's where the service has no address of its own.
	in.wan, in.wanPort = in.address, in.port
	if t, ok := r.Service.TaggedAddresses[tagWAN]; ok && t.Address != "" {
		in.wan = t.Address
		if t.Port != 0 {
			in.wanPort = asPort(t.Port)
		}
	} else if a := r.Node.TaggedAddresses[tagWAN]; a != "" && r.Service.Address == "" {
		in.wan = a
	}
	if n, err := strconv.ParseUint(r.Service.Meta[MetaHBONE], 10, 16); err == nil {
		in.hbone = uint16(n)
	}
	if l := r.Service.Locality; l != nil {
		in.locality = mesh.Locality(*l)
	} else if l := r.Node.Locality; l != nil {
		in.locality = mesh.Locality(*l)
	}
	if a, err := netip.ParseAddr(r.Service.TaggedAddresses[tagVirtual].Address); err == nil {
		in.vip = a
	}
	return in
}

func asPort(n int) uint16 {
	if n < 0 || n > 1<<16-1 {
		return 0
	}
	return uint16(n)
}

// worstStatus is what the row's checks come to; maintenance is a critical one.
// unchecked says that nothing but checks that have not run yet is critical.
func worstStatus(r *row) (worst string, unchecked bool) {
	worst = statusPassing
	for _, c := range r.Checks {
		switch c.Status {
		case statusPassing:
		case statusWarning:
			if worst == statusPassing {
				worst = statusWarning
			}
		default: // also what this version does not know
			if c.Output != "" || !probing[c.Type] {
				return statusCritical, false
			}
			worst, unchecked = statusCritical, true
		}
	}
	return worst, unchecked
}

// probing are the types of checks that an agent runs by itself
// (agent/structs.CheckType), and that say something when they have run.
var probing = map[string]bool{
	"tcp": true, "http": true, "grpc": true, "h2ping": true, "udp": true,
	"docker": true, "script": true, "os_service": true, "alias": true,
}

// health is the instance's as endpoint and its weight, by Consul's rules for
// sidecars (agent/xds/endpoints.go, calculateEndpointHealthAndWeight).
func (in *instance) health(onlyPassing bool) (mesh.Health, uint32) {
	weight := in.weights.Passing
	switch {
	case in.status == statusCritical, in.status == statusWarning && onlyPassing:
		return mesh.HealthUnhealthy, 1
	case in.status == statusWarning:
		weight = in.weights.Warning
	}
	if in.weights == (weights{}) {
		weight = 1 // rows older than weights
	}
	if weight <= 0 {
		return mesh.HealthUnhealthy, 1
	}
	return mesh.HealthHealthy, uint32(min(weight, maxWeight))
}

// maxWeight is Consul's own bound (structs.ValidateWeights).
const maxWeight = 65535

func instancesOf(rows []row) []instance {
	out := make([]instance, len(rows))
	for i := range rows {
		out[i] = newInstance(&rows[i])
	}
	return out
}
