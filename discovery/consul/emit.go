// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"maps"
	"slices"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// emit hands over what changed and what fails: a failure makes the view stale,
// not wrong.
func (r *run) emit(ctx context.Context) {
	r.news = false
	err, failing := r.failure(), ""
	if err != nil {
		failing = err.Error()
	}
	same := failing == r.reported
	switch {
	case r.complete() && (r.changed || !same && err == nil):
		u := r.view()
		u.Stale = err
		r.emitted, r.changed, r.reported = true, false, failing
		r.last, r.source.last = nil, nil
		if r.send(ctx, u) {
			r.registrar.stale = r.registrar.stale || !r.registrar.begun
		}
	case !same && err != nil:
		r.reported = failing
		r.send(ctx, discovery.Update{Err: err})
	}
}

func (r *run) send(ctx context.Context, u discovery.Update) bool {
	select {
	case r.updates <- u:
		return true
	case <-ctx.Done():
		return false
	}
}

// failure is the first of what fails now: the agent itself before all else, and then
// its servers, from whose absence the rest follows.
func (r *run) failure() error {
	for _, what := range []string{queryServices, queryLeader} {
		if err, ok := r.failing[what]; ok {
			return err
		}
	}
	for _, what := range slices.Sorted(maps.Keys(r.failing)) {
		return r.failing[what]
	}
	return nil
}

// view is everything as it is known now.
func (r *run) view() discovery.Update {
	u := discovery.Update{Warnings: slices.Clone(r.services.warnings)}
	keys := slices.SortedFunc(maps.Keys(r.chains), func(a, b chainKey) int { return a.meshName().Compare(b.meshName()) })
	for _, k := range keys {
		c := r.chains[k]
		if c.dirty {
			c.dirty = false
			r.build(c)
		}
		if c.built != nil {
			u.Services = append(u.Services, c.built)
		}
		u.Warnings = append(u.Warnings, c.warnings...)
	}
	for _, n := range r.services.names {
		w, err := r.workload(n, r.base(n), r.services.upstreams[n], r.services.selectors[n])
		if err != nil {
			u.Warnings = append(u.Warnings, err.Error())
			continue
		}
		u.Workloads = append(u.Workloads, w)
		list, warnings := r.policies(n, r.to[n], r.services.byDefault, r.ignorant(n))
		u.Policies = append(u.Policies, list...)
		u.Warnings = append(u.Warnings, warnings...)
		if text := r.takePlaintext(w, list); text != "" {
			u.Warnings = append(u.Warnings, text)
		}
	}
	for _, m := range []map[string]string{r.denied, r.partial} {
		for _, what := range slices.Sorted(maps.Keys(m)) {
			u.Warnings = append(u.Warnings, what+": "+m[what])
		}
	}
	return u
}

// build translates a chain.
func (r *run) build(c *chainState) {
	before := c.built
	c.warnings = nil
	if c.compiled == nil {
		// Nobody may read it, or not yet. A service here takes what arrives
		// all the same.
		if c.key.shared() && len(r.services.of[c.key.name]) > 0 {
			c.built = &mesh.Service{Name: c.key.meshName(), Ports: []mesh.Port{{Protocol: mesh.ProtocolTCP}}, Hostnames: r.hostnames(c.key)}
		}
	} else {
		c.built, c.warnings = r.service(c.key, c.compiled)
	}
	if c.built != nil && c.key.shared() {
		built, err := r.localEndpoints(c.built, r.services.of[c.key.name])
		if err != nil {
			c.warnings = append(c.warnings, err.Error())
		}
		c.built = built
	}
	c.built = mesh.ShareService(before, c.built)
}

// base is a workload as configuration wants all of them, and as Consul's own
// entries want this one where configuration says nothing else.
func (r *run) base(n mesh.Name) mesh.Workload {
	w := r.opts.Workload
	if c := r.configured(n); c != nil {
		w.MTLSPort = c.Port
	}
	for _, e := range r.entries[kindMesh] { // there is one
		if e.TransparentProxy.MeshDestinationsOnly {
			w.Egress = mesh.EgressRegisteredOnly
		}
	}
	return w
}

// globalEntry is the name of the one entry of kind proxy-defaults.
var globalEntry = mesh.Name{Name: "global"}.Canonical()
