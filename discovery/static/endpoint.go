// SPDX-License-Identifier: Apache-2.0

package static

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// listening is who is behind an address and port. Two services may have the
// same endpoint, but not with different people at home.
type listening struct {
	*mesh.Endpoint
	service mesh.Name
	place   string
}

func (d *decoder) endpoints(v yamlconf.Value, svc *mesh.Service) []*mesh.Endpoint {
	var out []*mesh.Endpoint
	v.List(func(v yamlconf.Value) {
		m := v.Map()
		defer m.Done()
		e := d.endpoint(m, svc)
		if e.Address.IsValid() && v.IsMap() {
			d.checkListening(v, e, svc)
			out = append(out, e)
		}
	})
	slices.SortFunc(out, mesh.CompareEndpoints)
	return out
}

func (d *decoder) endpoint(m *yamlconf.Map, svc *mesh.Service) *mesh.Endpoint {
	e := &mesh.Endpoint{Node: d.nodeName(m.Get("node")), Weight: 1}
	if w := m.Get("weight"); w.Present() {
		e.Weight = uint32(w.Int(1, 10000))
	}
	e.Ports = endpointPorts(m, svc)
	n := d.place(m, e)
	e.Locality = locality(m.Get("locality"))
	if n != nil && e.Locality == (mesh.Locality{}) {
		e.Locality = n.locality
	}
	d.reach(m, e, n)
	d.whoServes(m, e, svc)
	return e
}

// endpointPorts decodes "port" or "ports" into the order of the service's
// ports.
func endpointPorts(m *yamlconf.Map, svc *mesh.Service) []uint16 {
	one, several := m.Get("port"), m.Get("ports")
	out := make([]uint16, len(svc.Ports))
	names := make([]string, len(svc.Ports))
	for i, p := range svc.Ports {
		names[i] = p.Name
	}
	switch {
	case one.Present() && several.Present():
		several.Reject("found both port and ports", "one of them")
	case one.Present() && len(svc.Ports) > 1:
		one.Reject(fmt.Sprintf("found one port, and the service has %d", len(svc.Ports)), "ports: {"+strings.Join(names, ": …, ")+": …}")
	case one.Present():
		for i := range out {
			out[i] = one.Port()
		}
	case several.Present():
		byName := several.Map()
		for i, name := range names {
			if name == "" {
				several.Reject("found ports, and the service's port has no name", "port: …")
				byName.Ignore(byName.Keys()...)
				break
			}
			out[i] = byName.Required(name).Port()
		}
		byName.Done()
	default:
		if !m.Has("port") && !m.Has("ports") {
			m.Value().Reject("found an endpoint without a port", "port, or ports by the names of the service's ports")
		}
	}
	return out
}

// place finds the endpoint's address and node, each by the other where one is
// left out, and returns the node, or nil.
func (d *decoder) place(m *yamlconf.Map, e *mesh.Endpoint) *node {
	n := d.nodes[e.Node]
	v := m.Get("address")
	switch {
	case v.Present():
		e.Address = dialable(v)
		if n == nil && e.Address.IsValid() {
			n = d.byAddress[e.Address.String()]
		}
	case n != nil:
		e.Address = n.address
		if !n.address.IsValid() {
			m.Value().Rejectf("the endpoint has no address, nor has node %q", n.name)
		}
	case !m.Has("node") && !m.Has("address"):
		m.Value().Reject(`"address" is missing`, "address, or node for the node's own address")
	}
	if n != nil {
		e.Node = n.name
	}
	if e.Address.IsLoopback() && n == nil {
		v.Reject("found "+e.Address.String()+" without a node", "a loopback address together with the node that it is on")
	}
	return n
}

// reach decodes the transport and the address of the tunnel.
func (d *decoder) reach(m *yamlconf.Map, e *mesh.Endpoint, n *node) {
	inMesh := n != nil || m.Has("identity") || m.Has("workload") || m.Has("tunnel")
	e.Transport = mesh.TransportNone
	if inMesh {
		e.Transport = mesh.TransportHBONE
	}
	transport, tunnel := m.Get("transport"), m.Get("tunnel")
	e.Transport = either(transport, e.Transport, mesh.TransportHBONE, mesh.TransportMTLS, mesh.TransportNone)
	e.Tunnel = tunnel.AddrPort()
	if sni := m.Get("sni"); sni.Present() {
		if e.SNI = sni.Hostname(); e.Transport == mesh.TransportNone {
			sni.Reject("found sni with transport none", "transport hbone or mtls, or no sni")
		}
	}
	switch {
	case e.Transport == mesh.TransportNone:
		for _, key := range []string{"tunnel", "identity", "workload"} {
			if m.Has(key) {
				m.Get(key).Reject(fmt.Sprintf("found %s with transport none", key), "transport hbone or mtls, or no "+key)
			}
		}
	case e.Tunnel.IsValid() || tunnel.Present():
	case e.Transport == mesh.TransportMTLS:
		m.Value().Reject("found transport mtls without the address of its port", "tunnel: address:port")
	case n != nil:
		e.Tunnel = n.tunnel
	case e.Address.IsValid():
		// As ztunnel does: the tunnel ends at the workload's own address.
		e.Tunnel = netip.AddrPortFrom(e.Address, d.opts.TunnelPort)
	}
}

// whoServes finds the workload and the identity expected of it.
func (d *decoder) whoServes(m *yamlconf.Map, e *mesh.Endpoint, svc *mesh.Service) {
	w, id := m.Get("workload"), m.Get("identity")
	if e.Transport == mesh.TransportNone {
		return
	}
	if w.Present() {
		e.Workload = reference(w, svc.Namespace)
	} else if !id.Present() && e.Node != "" {
		e.Workload = svc.Name // a service is usually served by the workload of its name
	}
	known := d.workloads[e.Workload]
	switch {
	case id.Present():
		e.Identity = id.Identity()
	case known != nil:
		e.Identity = known.Identity
	case e.Workload.IsZero():
		if !w.Present() {
			m.Value().Reject("found neither workload nor identity", "workload, identity, or transport: none for an endpoint outside of the mesh")
		}
	default:
		e.Identity = d.identity(id, m.Value(), e.Workload)
	}
	if known != nil && id.Present() && !e.Identity.IsZero() && known.Identity != e.Identity {
		id.Rejectf("found %s, but workload %q at %s has %s", e.Identity, e.Workload, known.place, known.Identity)
	}
	if known != nil && known.node != "" && e.Node != "" && known.node != e.Node {
		m.Value().Rejectf("the endpoint is on node %q, but workload %q at %s is on node %q", e.Node, e.Workload, known.place, known.node)
	}
	if known == nil && !e.Workload.IsZero() && e.Node != "" && e.Node == d.opts.Node.Name {
		d.warnf(m.Value(), "workload %q of this endpoint is not one of this node; connections to it are not captured", e.Workload)
	}
}

// checkListening reports endpoints that are there twice, or contradict each
// other. A loopback address is one of its node only.
func (d *decoder) checkListening(v yamlconf.Value, e *mesh.Endpoint, svc *mesh.Service) {
	for i, port := range e.Ports {
		if port == 0 || i > 0 && slices.Contains(e.Ports[:i], port) {
			continue
		}
		at := netip.AddrPortFrom(e.Address, port)
		before, known := d.listening[listenKey{at, loopbackNode(e)}]
		switch {
		case !known:
			d.listening[listenKey{at, loopbackNode(e)}] = listening{e, svc.Name, v.Position()}
		case before.service == svc.Name:
			v.Rejectf("endpoint %s is there twice, first at %s", at, before.place)
		case before.Node != e.Node || before.Workload != e.Workload || before.Identity != e.Identity || before.Transport != e.Transport:
			v.Rejectf("endpoint %s has another node, workload, identity or transport than the one of service %q at %s", at, before.service, before.place)
		}
	}
}

type listenKey struct {
	addr netip.AddrPort
	node string
}

func loopbackNode(e *mesh.Endpoint) string {
	if e.Address.IsLoopback() {
		return e.Node
	}
	return ""
}
