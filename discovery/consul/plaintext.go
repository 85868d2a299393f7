// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"fmt"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// takePlaintext has a workload take plaintext where Consul's entries say so and
// configuration doesn't say otherwise. What that means differs from Envoy, so it is
// said: Consul's sidecars take it at the service's port alone, and let it in whatever
// the intentions are (makePermissiveFilterChain in agent/xds/listeners.go). Here a
// policy that denies anybody denies those who don't say who they are.
func (r *run) takePlaintext(w *mesh.Workload, policies []*mesh.Policy) (warning string) {
	kind, mode := r.mutualTLSMode(w.Name)
	switch {
	case mode == "" || mode == string(w.Inbound):
		return ""
	case mode == string(mesh.InboundPermissive) && w.Inbound == mesh.InboundStrict:
		w.Inbound = mesh.InboundPermissive
		text := fmt.Sprintf("service %s: MutualTLSMode permissive in %s opens every port of its processes to plaintext", w.Name, kind)
		if i := slices.IndexFunc(policies, func(p *mesh.Policy) bool { return p.Action == mesh.ActionDeny }); i >= 0 {
			text = fmt.Sprintf("service %s: MutualTLSMode permissive in %s lets no plaintext in: it shows no identity, so the policy %q denies it",
				w.Name, kind, policies[i].Name.Name)
		}
		return text
	}
	return fmt.Sprintf("service %s: MutualTLSMode %s in %s is not in force: configuration says %s", w.Name, mode, kind, w.Inbound)
}

// mutualTLSMode is what Consul's entries say of a service, and which of them
// (agent/configentry/resolve.go): that of the service, a strict one too, before
// that of all. Whether the entry of kind mesh still permits permissive ones is
// asked by Consul when they are written; those that are stay in force.
func (r *run) mutualTLSMode(n mesh.Name) (kind, mode string) {
	if mode := r.entries[kindServiceDefaults][n].MutualTLSMode; mode != "" {
		return kindServiceDefaults, mode
	}
	return kindProxyDefaults, r.entries[kindProxyDefaults][globalEntry].MutualTLSMode
}
