// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// gatewayMode says how targets elsewhere are reached.
type gatewayMode struct{ Mode string }

// through reports whether targets elsewhere are to be reached by a gateway.
func (m gatewayMode) through() bool { return through(m.Mode) }

func through(mode string) bool { return mode == "local" || mode == "remote" }

// gatewayDefault is a chain's of an upstream that leaves the mode to its
// targets, where the other users of the service don't.
const gatewayDefault = "default"

// upstreamConfig is what an entry says about upstreams of a service, or about
// one of them.
type upstreamConfig struct {
	Name, Namespace, Peer string
	MeshGateway           gatewayMode
}

// gateway is how a service here wants another one reached that is elsewhere;
// empty: as the other one says. The entries count as they do for Envoy, the
// later ones before the others (agent/configentry/resolve.go of Consul).
func (r *run) gateway(from, to mesh.Name) string {
	global, own := r.entries[kindProxyDefaults][globalEntry], r.entries[kindServiceDefaults][from]
	every := cmp.Or(own.MeshGateway.Mode, global.MeshGateway.Mode)
	mode := cmp.Or(every, global.opaqueGateway())
	if c := own.UpstreamConfig; c != nil && c.Defaults != nil {
		mode = cmp.Or(c.Defaults.MeshGateway.Mode, mode)
	}
	for _, registered := range r.services.gateways[from] {
		// The agent shows what the entries say of all as the registration's
		// own. Where it may be either, a gateway stays in between.
		if registered != every || through(every) {
			mode = cmp.Or(registered, mode)
		}
		if through(registered) {
			break
		}
	}
	if c := own.UpstreamConfig; c != nil {
		for _, o := range c.Overrides {
			if o.Peer == "" && o.Name == to.Name && cmp.Or(o.Namespace, from.Namespace) == to.Namespace {
				mode = cmp.Or(o.MeshGateway.Mode, mode)
			}
		}
	}
	return mode
}

// opaqueGateway is the mode in the part of proxy-defaults that has no form.
func (e *configEntry) opaqueGateway() string {
	fields, _ := e.Config["mesh_gateway"].(map[string]any)
	for name, v := range fields {
		if text, ok := v.(string); ok && strings.EqualFold(name, "mode") {
			return text
		}
	}
	return ""
}

// sameGateways reports whether two states of an entry say the same of gateways.
func sameGateways(a, b *configEntry) bool {
	return a.MeshGateway == b.MeshGateway && a.opaqueGateway() == b.opaqueGateway() && reflect.DeepEqual(a.UpstreamConfig, b.UpstreamConfig)
}

// shareGateways settles how services are reached that are dialled by their
// names and virtual IPs. There is one way for all workloads, so it is through
// gateways if one of them that may dial the service wants it so.
func (r *run) shareGateways(wanted map[chainKey]bool) {
	before := r.gateways
	r.gateways = nil
	if r.anyGateway() {
		r.gateways = make(map[mesh.Name]string)
		for k := range wanted {
			r.shareGateway(k.name)
		}
		for _, ups := range r.services.upstreams {
			for _, u := range ups {
				r.shareGateway(u.Service)
			}
		}
	}
	if !maps.Equal(before, r.gateways) {
		for _, c := range r.chains {
			c.dirty = true
		}
	}
}

func (r *run) shareGateway(to mesh.Name) {
	if _, settled := r.gateways[to]; !settled {
		r.gateways[to] = r.sharedGateway(to)
	}
}

// gatewayOf is how a chain's targets elsewhere are reached; empty: as they say.
func (r *run) gatewayOf(k chainKey) string {
	switch {
	case k.shared():
		return r.gateways[k.name]
	case k.gateway == gatewayDefault:
		return ""
	}
	return k.gateway
}

// anyGateway reports whether anything is said about gateways at all, which is
// rarely so.
func (r *run) anyGateway() bool {
	silent := &configEntry{}
	for _, e := range r.entries[kindProxyDefaults] {
		if !sameGateways(&e, silent) {
			return true
		}
	}
	return slices.ContainsFunc(r.services.names, func(n mesh.Name) bool {
		own := r.entries[kindServiceDefaults][n]
		return !sameGateways(&own, silent) || len(r.services.gateways[n]) > 0 ||
			slices.ContainsFunc(r.services.upstreams[n], func(u Upstream) bool { return u.gateway != "" })
	})
}

func (r *run) sharedGateway(to mesh.Name) string {
	shared, first := "", true
	for _, from := range r.services.names {
		if r.opts.Reach == ReachPermitted && !permits(r.from[from], to, r.services.byDefault) {
			continue
		}
		mode := r.gateway(from, to)
		for _, u := range r.services.upstreams[from] {
			if u.Service == to && !u.elsewhere(r.home) {
				mode = cmp.Or(u.gateway, mode)
			}
		}
		switch {
		case through(mode):
			return mode
		case first || mode == "":
			shared, first = mode, false
		}
	}
	return shared
}

// registeredGateways are the modes that the proxies of a service ask for, those
// through gateways first.
func registeredGateways(instances []*local, all map[string]*agentService, node string) (modes []string) {
	for _, p := range all {
		if p.Kind == kindConnectProxy && p.Proxy != nil && p.Proxy.MeshGateway.Mode != "" && p.Meta[metaNode] != node && frontsAny(p, instances) {
			modes = append(modes, p.Proxy.MeshGateway.Mode)
		}
	}
	slices.SortFunc(modes, func(a, b string) int {
		return cmp.Or(rank(!through(a))-rank(!through(b)), cmp.Compare(a, b))
	})
	return slices.Compact(modes)
}

// override has the targets of a chain reached as who dials them wants it, as the
// compiler does when it is told (agent/consul/discoverychain/compile.go).
func (c *chain) override(mode string) {
	for _, t := range c.Targets {
		if mode != "" && !t.External {
			t.MeshGateway.Mode = mode
		}
	}
}
