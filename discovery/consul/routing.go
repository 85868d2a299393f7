// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"slices"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// routing is a chain's part about requests; nil where a resolver alone
// decides and no request can be told from another.
func (x *translation) routing(c *chain) *mesh.Routing {
	start := c.Nodes[c.StartNode]
	if start == nil || protocol(c.Protocol) == mesh.ProtocolTCP {
		return nil
	}
	b := &routingBuilder{x: x, chain: c, targets: make(map[string]int), out: &mesh.Routing{}}
	if start.Type != nodeRouter {
		b.route(mesh.Route{}, c.StartNode)
		return b.done(start)
	}
	for i := range start.Routes {
		r := &start.Routes[i]
		b.route(routeOf(&r.Definition), r.NextNode)
	}
	return b.done(start)
}

type routingBuilder struct {
	x       *translation
	chain   *chain
	targets map[string]int // by resolver
	out     *mesh.Routing
}

// done drops a routing that says nothing beyond the service's endpoints.
func (b *routingBuilder) done(start *chainNode) *mesh.Routing {
	if start.Type == nodeResolver && start.LoadBalancer == nil && start.Resolver.RequestTimeout == 0 {
		return nil
	}
	return b.out
}

func (b *routingBuilder) route(r mesh.Route, next string) {
	n := b.chain.Nodes[next]
	switch {
	case n == nil:
		return
	case n.Type == nodeSplitter:
		for _, s := range n.Splits {
			split := mesh.RouteSplit{Weight: hundredths(s.Weight), Target: b.target(s.NextNode)}
			if d := s.Definition; d != nil {
				split.HeaderEdits = mesh.HeaderEdits{Request: editOf(d.RequestHeaders), Response: editOf(d.ResponseHeaders)}
			}
			if split.Target >= 0 {
				r.Splits = append(r.Splits, split)
			}
		}
	default:
		if t := b.target(next); t >= 0 {
			r.Splits = []mesh.RouteSplit{{Weight: 10000, Target: t}}
		}
	}
	b.out.Routes = append(b.out.Routes, r)
}

// target returns the index of a resolver's target, -1 if there is none.
func (b *routingBuilder) target(resolver string) int {
	if i, ok := b.targets[resolver]; ok {
		return i
	}
	n := b.chain.Nodes[resolver]
	if n == nil || n.Resolver == nil {
		return -1
	}
	t := mesh.RouteTarget{
		Name:           n.Resolver.Target,
		ConnectTimeout: n.Resolver.ConnectTimeout.duration(),
		RequestTimeout: n.Resolver.RequestTimeout.duration(),
	}
	if lb := n.LoadBalancer; lb != nil {
		t.Balance = mesh.Balance(lb.Policy)
		for _, h := range lb.HashPolicies {
			t.Hash = append(t.Hash, hashField(h))
		}
	}
	for _, l := range b.x.failover(b.chain, n, 0) {
		list, _ := b.x.endpoints(l)
		t.Endpoints = append(t.Endpoints, list...)
	}
	t.Endpoints = distinct(t.Endpoints)
	b.out.Targets = append(b.out.Targets, t)
	b.targets[resolver] = len(b.out.Targets) - 1
	return b.targets[resolver]
}

func hashField(h hashPolicy) mesh.HashField {
	f := mesh.HashField{Field: h.Field, Name: h.FieldValue, Terminal: h.Terminal}
	if h.SourceIP {
		f.Field, f.Name = "source_ip", ""
	}
	if c := h.CookieConfig; c != nil {
		f.CookiePath = c.Path
		if !c.Session {
			f.CookieTTL = c.TTL.duration()
		}
	}
	return f
}

func routeOf(d *routeDefinition) mesh.Route {
	var r mesh.Route
	if d.Match != nil && d.Match.HTTP != nil {
		m := d.Match.HTTP
		r.Match = mesh.RouteMatch{
			PathExact: m.PathExact, PathPrefix: m.PathPrefix, PathRegex: m.PathRegex, IgnoreCase: m.CaseInsensitive,
			Headers: fields(m.Header), Query: fields(m.QueryParam), Methods: slices.Clone(m.Methods),
		}
	}
	to := d.Destination
	if to == nil {
		return r
	}
	r.PrefixRewrite = to.PrefixRewrite
	r.Timeout, r.IdleTimeout = to.RequestTimeout.duration(), to.IdleTimeout.duration()
	if to.NumRetries > 0 || to.RetryOnConnectFailure || len(to.RetryOn) > 0 || len(to.RetryOnStatusCodes) > 0 {
		r.Retry = &mesh.RouteRetry{
			Attempts:         cmp.Or(to.NumRetries, 1), // Envoy's default
			OnConnectFailure: to.RetryOnConnectFailure,
			On:               slices.Clone(to.RetryOn), OnStatus: slices.Clone(to.RetryOnStatusCodes),
		}
	}
	r.HeaderEdits = mesh.HeaderEdits{Request: editOf(to.RequestHeaders), Response: editOf(to.ResponseHeaders)}
	return r
}

func fields(list []fieldMatch) (out []mesh.FieldMatch) {
	for _, f := range list {
		out = append(out, mesh.FieldMatch(f))
	}
	return out
}

func editOf(e *headerEdit) *mesh.HeaderEdit {
	if e == nil || len(e.Add)+len(e.Set)+len(e.Remove) == 0 {
		return nil
	}
	return &mesh.HeaderEdit{Add: e.Add, Set: e.Set, Remove: e.Remove}
}
