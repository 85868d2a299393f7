// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// localIndex is what follows from the agent's services and configuration.
type localIndex struct {
	stale     bool
	byDefault mesh.Action

	names     []mesh.Name
	of        map[mesh.Name][]*local
	upstreams map[mesh.Name][]Upstream
	gateways  map[mesh.Name][]string // modes that proxies are registered with
	selectors map[mesh.Name][]mesh.Selector
	warnings  []string
	// waiting: a service here has nobody listening whom it could be matched
	// to.
	waiting bool
	indexed time.Time
}

// configured returns what configuration says about a service here.
func (r *run) configured(n mesh.Name) *Service {
	for i := range r.opts.Services {
		if r.tenancy.within(r.opts.Services[i].Name) == n {
			return &r.opts.Services[i]
		}
	}
	return nil
}

func (r *run) indexLocal(ctx context.Context) {
	s := &r.services
	s.stale, s.indexed = false, time.Now()
	address := r.self.Address
	if !address.IsValid() {
		address, _ = netip.ParseAddr(r.addressOfAgent)
	}
	r.locals, s.warnings = localServices(r.all, address)
	s.warnings = append(s.warnings, r.leaveOut()...)
	before := s.names
	s.names, s.of = byName(r.locals)
	s.upstreams = make(map[mesh.Name][]Upstream, len(s.names))
	s.gateways = make(map[mesh.Name][]string)
	for _, n := range s.names {
		var configured []Upstream
		if c := r.configured(n); c != nil {
			configured = c.Upstreams
		}
		s.gateways[n] = registeredGateways(s.of[n], r.all, r.self.Name)
		ups, w := r.upstreams(n, s.of[n], configured)
		s.upstreams[n] = ups
		s.warnings = append(s.warnings, w...)
	}
	for i := range r.opts.Services {
		if n := r.opts.Services[i].Name; r.tenancy.foreign(n) {
			s.warnings = append(s.warnings, fmt.Sprintf("service %s of sources.consul.services is left out: the agent is asked about namespace %s, by consul.namespace or the token's", n, r.tenancy.own()))
		}
	}
	r.match()
	if !slices.Equal(before, s.names) {
		r.followIntentions(ctx)
	}
	for _, c := range r.chains {
		c.dirty = true // local instances may be in any of them
	}
}

// plan settles which chains are wanted: those of explicit upstreams, of the
// services here, and of all that intentions permit one of them.
func (r *run) plan(ctx context.Context) {
	if !r.heard[querySelf] || !r.heard[queryServices] || r.trustDomain.IsZero() || r.home.datacenter == "" && len(r.all) > 0 {
		return
	}
	if r.services.stale {
		r.indexLocal(ctx)
	}
	if len(r.services.names) > 0 && (!r.heard[queryTo] || !r.heard[queryFrom]) || !r.heard[queryNames] {
		return
	}
	wanted := r.wanted()
	for k := range wanted {
		c := r.chains[k]
		gateway := r.gatewayOf(k)
		switch {
		case c == nil:
			c = &chainState{key: k, gateway: gateway, dirty: true}
			r.chains[k] = c
		case c.gateway == gateway:
			continue
		}
		c.gateway = gateway
		r.fetches.chain(c)
	}
	for k, c := range r.chains {
		if !wanted[k] {
			r.dropChain(c)
		}
	}
	r.planned, r.changed = true, true
}

// wanted are the chains to have, those that explicit upstreams lead to when it is
// settled how the others reach theirs.
func (r *run) wanted() map[chainKey]bool {
	wanted := make(map[chainKey]bool)
	for _, n := range r.services.names {
		wanted[chainKey{name: n}] = true
	}
	if r.opts.Reach == ReachPermitted {
		for n := range r.known() {
			if !wanted[chainKey{name: n}] && r.permitted(n) {
				wanted[chainKey{name: n}] = true
			}
		}
	}
	r.shareGateways(wanted)
	for _, n := range r.services.names {
		for _, u := range r.services.upstreams[n] {
			wanted[r.key(&u)] = true
		}
	}
	return wanted
}

// known are the services that exist: with instances, or by configuration
// entries alone, as virtual services do.
func (r *run) known() map[mesh.Name]bool {
	all := make(map[mesh.Name]bool, len(r.catalog))
	for n := range r.catalog {
		all[r.tenancy.within(mesh.Name{Name: n})] = true
	}
	for _, kind := range []string{"service-resolver", "service-splitter", "service-router"} {
		for n := range r.entries[kind] {
			all[n] = true
		}
	}
	return all
}

func (r *run) permitted(n mesh.Name) bool {
	return slices.ContainsFunc(r.services.names, func(from mesh.Name) bool {
		return permits(r.from[from], n, r.services.byDefault)
	})
}

// followIntentions asks for the intentions of the services that are here now:
// one query for all of them in each direction. Until the answer is there, what
// was said last about a service goes on to hold, be it a denial.
func (r *run) followIntentions(ctx context.Context) {
	if r.intentions != nil {
		r.intentions()
	}
	for _, what := range []string{queryTo, queryFrom} {
		delete(r.heard, what)
		delete(r.failing, what)
		r.forget(what + ofSome)
	}
	names := slices.Clone(r.services.names)
	if len(names) == 0 {
		r.to, r.from, r.intentions, r.answered = nil, nil, nil, nil
		r.forget(queryTo)
		r.forget(queryFrom)
		return
	}
	r.news = true
	ctx, r.intentions = context.WithCancel(ctx)
	r.tasks.Go(func() {
		follow(ctx, r, queryTo, r.askIntentions(names, api.IntentionMatchDestination), func(m matches, _ *api.QueryMeta) {
			r.to, r.unreadable, r.answered = m.found, m.unreadable, names
			r.changed = true
		})
	})
	r.tasks.Go(func() {
		follow(ctx, r, queryFrom, r.askIntentions(names, api.IntentionMatchSource), func(m matches, _ *api.QueryMeta) {
			r.from = m.found
			r.planned, r.changed = false, true
		})
	})
}

// ofSome ends the name of a query that is denied for some services only.
const ofSome = ", of some"

// matches are intentions by local service.
type matches struct {
	found      map[mesh.Name][]intention
	unreadable map[mesh.Name]bool
}

// askIntentions asks about all names in one query. Where the token may not
// read those of all, each is asked for alone, and then the others together.
func (r *run) askIntentions(names []mesh.Name, by api.IntentionMatchType) asker[matches] {
	readable := names
	unreadable := make(map[mesh.Name]bool)
	return func(ctx context.Context, index uint64, wait time.Duration) (matches, *api.QueryMeta, error) {
		m, meta, err := r.askMatches(ctx, readable, by, index, wait)
		if err == nil || !refused(err) || len(names) == 0 {
			m.unreadable = unreadable
			return m, meta, err
		}
		readable = nil
		unreadable = make(map[mesh.Name]bool) // the one before was handed over
		var denial error
		for _, n := range names {
			_, _, err := r.askMatches(ctx, []mesh.Name{n}, by, 0, 0)
			switch {
			case err == nil:
				readable = append(readable, n)
			case refused(err):
				unreadable[n] = true
				denial = err
			default:
				return matches{}, nil, err
			}
		}
		what := queryTo + ofSome
		if by == api.IntentionMatchSource {
			what = queryFrom + ofSome
		}
		r.post(ctx, func() { r.deny(what, denial) })
		if len(readable) == 0 {
			return matches{}, nil, denial
		}
		m, meta, err = r.askMatches(ctx, readable, by, 0, 0)
		m.unreadable = unreadable
		return m, meta, err
	}
}

func (r *run) askMatches(ctx context.Context, names []mesh.Name, by api.IntentionMatchType, index uint64, wait time.Duration) (matches, *api.QueryMeta, error) {
	texts := make([]string, len(names))
	for i, n := range names {
		texts[i] = n.Name
		if r.tenancy.namespace(n.Namespace) != "" {
			texts[i] = n.Namespace + "/" + n.Name
		}
	}
	found := make(map[string][]wireIntention, len(names))
	meta, err := r.ask(ctx, question{
		path: "/v1/connect/intentions/match", more: url.Values{"by": {string(by)}, "name": texts}, index: index, wait: wait,
	}, &found)
	if err != nil {
		return matches{}, nil, err
	}
	m := matches{found: make(map[mesh.Name][]intention, len(names))}
	for i, n := range names {
		m.found[n] = intentionsOf(found[texts[i]])
	}
	return m, meta, nil
}

func intentionsOf(list []wireIntention) (out []intention) {
	for i := range list {
		w := &list[i]
		ix := w.intention
		ix.Action = strings.ToLower(w.Action)
		// What applies to a request, or asks it for a token, is nothing that a
		// connection shows.
		ix.Conditional = len(w.Permissions) > 0 || w.JWT != nil && ix.Action == string(mesh.ActionAllow)
		out = append(out, ix)
	}
	return out
}
