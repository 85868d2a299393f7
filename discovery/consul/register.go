// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

const (
	// metaNode marks rows that a node proxy keeps, with the node's name.
	metaNode = "meshproxy-node"
	// rowSuffix makes a row's id of that of its service. A sidecar that is
	// there as well has another one (agent/sidecar_service.go).
	rowSuffix = "-meshproxy"
	// proxySuffix makes a row's name of that of its service: a token with a
	// service identity may register that name and no other.
	proxySuffix = "-sidecar-proxy"
	// checkInterval and checkTimeout are those of the row's check of the
	// node's port.
	checkInterval, checkTimeout = "10s", "5s"
	// registerTime bounds a registration.
	registerTime = 10 * time.Second
	// registerPause is when what failed is tried again.
	registerPause = 5 * time.Second
)

// What is done about rows, for people.
const registering, deregistering = "register ", "deregister "

// registrar keeps the node's rows in the agent in step with the services that
// the agent has.
type registrar struct {
	run     *run
	stale   bool      // rows are to be compared
	anew    bool      // and those of proxies registered, whatever the agent has
	acted   time.Time // when a row was changed last
	begun   bool
	working map[string]bool        // ids
	again   map[time.Duration]bool // pauses after which what failed is tried again
}

// keep registers what is missing or differs, and deregisters what is too much.
// It begins once the first view has been handed over: a row says that the
// proxy is there.
func (g *registrar) keep() {
	r := g.run
	if !g.stale || !r.emitted || r.all == nil || r.asked.Before(g.acted) {
		return // an answer from before a change would have it made again
	}
	g.stale, g.begun = false, true
	anew := g.anew
	g.anew = false
	wanted := g.wanted()
	tried := make(map[string]bool)
	do := func(id, what string, act func(context.Context) error) {
		tried[what+id] = true
		g.do(id, what, act)
	}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if row := wanted[id]; anew && row.Kind == api.ServiceKindConnectProxy || !sameRow(r.all[id], row) {
			do(id, registering, func(ctx context.Context) error { return r.register(ctx, row) })
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.all)) {
		if wanted[id] == nil && r.all[id].Meta[metaNode] == r.self.Name {
			do(id, deregistering, func(ctx context.Context) error { return deregister(ctx, r.opts.Agent, id) })
		}
	}
	for what := range r.denied { // what goes on to fail is said until it works
		if !tried[what] && (strings.HasPrefix(what, registering) || strings.HasPrefix(what, deregistering)) {
			r.forget(what)
		}
	}
}

func (g *registrar) wanted() map[string]*api.AgentServiceRegistration {
	r := g.run
	wanted := make(map[string]*api.AgentServiceRegistration)
	for _, s := range r.opts.Services {
		if s.Register != nil && !r.tenancy.foreign(s.Name) {
			row := s.Register.row(&s, r.self.Name, r.tenancy.namespace(s.Name.Namespace))
			wanted[row.ID] = row
		}
	}
	if !r.opts.Register {
		return wanted
	}
	for id, l := range r.locals {
		if l.port == 0 {
			continue
		}
		if own := r.all[id]; own.Meta[metaNode] == r.self.Name && wanted[id] == nil {
			continue // a service of the node's own that is about to go
		}
		row := r.proxyRow(l)
		wanted[row.ID] = row
	}
	return wanted
}

// do does something about a row, on a goroutine of its own.
func (g *registrar) do(id, what string, act func(context.Context) error) {
	r := g.run
	if g.working == nil {
		g.working = make(map[string]bool)
	}
	if g.working[id] {
		g.stale = true
		return
	}
	g.working[id] = true
	query := what + id
	r.fetches.queue = append(r.fetches.queue, func(ctx context.Context) {
		r.tasks.Go(func() {
			c, cancel := context.WithTimeout(ctx, registerTime)
			err := act(c)
			cancel()
			r.post(ctx, func() {
				r.fetches.running--
				delete(g.working, id)
				g.done(query, id, err)
			})
		})
	})
}

func (g *registrar) done(query, id string, err error) {
	r := g.run
	g.acted = time.Now()
	pause := registerPause
	switch {
	case err == nil:
		r.log.Info("Consul agent's services changed", "did", query)
		if _, ok := r.denied[query]; ok {
			delete(r.denied, query)
			r.changed = true
		}
		r.kickLocal()
		return
	case refused(err):
		r.deny(query, err)
		pause = deniedPause
	default:
		if text := plainly(r.opts.Agent.Address(), err).Error(); r.denied[query] != text {
			r.log.Warn("change the Consul agent's services", "failed", query, "error", text)
			r.denied[query] = text
			r.changed = true
		}
	}
	if g.again[pause] {
		return // one attempt for all that failed
	}
	if g.again == nil {
		g.again = make(map[time.Duration]bool)
	}
	g.again[pause] = true
	r.afterwards(pause, func() { g.again[pause], g.stale = false, true })
}

// register registers a row. An agent registers a proxy once more by itself when
// it has read proxy-defaults, and takes what is then as it was before for
// something that its servers have (agent/service_manager.go,
// setServiceStateLocked and setCheckStateLocked in agent/local/state.go). What
// it had not told them yet they hear with the next full synchronisation, minutes
// later. So the alias begins as the service is now, rather than as critical, and
// is registered once more with something changed, which takes the row along.
func (r *run) register(ctx context.Context, row *api.AgentServiceRegistration) error {
	agent := r.opts.Agent.Agent()
	var alias *api.AgentServiceCheck
	for _, check := range row.Checks {
		if check.AliasService == "" {
			continue
		}
		alias = check
		health, _, err := agent.AgentHealthServiceByIDOpts(check.AliasService, (&api.QueryOptions{}).WithContext(ctx))
		if err == nil { // else the registration says better what is wrong
			check.Status = health
		}
	}
	err := agent.ServiceRegisterOpts(row, api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx))
	if err != nil || alias == nil {
		return err
	}
	return agent.CheckRegisterOpts(&api.AgentCheckRegistration{
		ID: alias.CheckID, Name: alias.Name, Notes: "As healthy as the service behind the node proxy.", ServiceID: row.ID,
		Namespace: row.Namespace, Partition: row.Partition,
		AgentServiceCheck: api.AgentServiceCheck{AliasService: alias.AliasService, Status: alias.Status},
	}, (&api.QueryOptions{}).WithContext(ctx))
}

// proxyRow is the row for an instance of a service here.
func (r *run) proxyRow(l *local) *api.AgentServiceRegistration {
	port := r.opts.InboundPort
	if c := r.configured(l.name); c != nil && c.Port != 0 {
		port = c.Port
	}
	row := &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy,
		ID:   l.ID + rowSuffix, Name: l.Service + proxySuffix,
		Namespace: l.Namespace, Partition: l.Partition,
		Tags: l.Tags, Port: int(port), Address: r.rowAddress(l),
		Meta:    maps.Clone(l.Meta),
		Weights: &api.AgentWeights{Passing: cmp.Or(l.Weights.Passing, 1), Warning: cmp.Or(l.Weights.Warning, 1)},
		Proxy: &api.AgentServiceConnectProxyConfig{
			DestinationServiceName: l.Service, DestinationServiceID: l.ID,
			LocalServiceAddress: "127.0.0.1", LocalServicePort: int(l.port),
		},
	}
	if l.Locality != nil {
		row.Locality = &api.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone}
	}
	if row.Meta == nil {
		row.Meta = make(map[string]string)
	}
	row.Meta[metaNode] = r.self.Name
	if r.hbone != 0 {
		row.Meta[MetaHBONE] = strconv.Itoa(int(r.hbone))
	}
	probe := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	row.Checks = api.AgentServiceChecks{
		// As the agent's own sidecar registrations have them. The port is
		// open before the row exists, so it need not wait for its first
		// check to pass.
		{Name: "Node proxy listening", TCP: probe.String(), Interval: checkInterval, Timeout: checkTimeout, Status: api.HealthPassing},
		{CheckID: row.ID + ":alias", Name: "Node proxy aliasing " + l.ID, AliasService: l.ID},
	}
	return row
}

// rowAddress is where others reach the instance; empty: at the agent's own
// address.
func (r *run) rowAddress(l *local) string {
	if !l.address.IsValid() || l.address.String() == r.addressOfAgent {
		return ""
	}
	return l.address.String()
}

// sameRow reports whether the agent has a row as it is wanted. What it checks
// is not shown, and follows from the rest.
func sameRow(is *agentService, want *api.AgentServiceRegistration) bool {
	if is == nil || is.Kind != string(want.Kind) || is.Service != want.Name || is.Port != want.Port || is.Address != want.Address ||
		!slices.Equal(is.Tags, want.Tags) || !maps.Equal(is.Meta, want.Meta) {
		return false
	}
	if want.Weights != nil && is.Weights != (weights{want.Weights.Passing, want.Weights.Warning}) {
		return false
	}
	if (is.Locality == nil) != (want.Locality == nil) || is.Locality != nil && *is.Locality != wireLocality(*want.Locality) {
		return false
	}
	if want.Proxy == nil {
		return true
	}
	return is.Proxy != nil && is.Proxy.DestinationServiceName == want.Proxy.DestinationServiceName &&
		is.Proxy.DestinationServiceID == want.Proxy.DestinationServiceID && is.Proxy.LocalServicePort == want.Proxy.LocalServicePort
}

// Leave deregisters what the node of that name has registered with the agent:
// its rows, and services of its own. It returns their ids.
func Leave(ctx context.Context, agent *consulagent.Agent, node string) (ids []string, err error) {
	all, err := agent.Agent().ServicesWithFilterOpts("", (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("list services of the agent: %w", plainly(agent.Address(), err))
	}
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if all[id].Meta[metaNode] != node {
			continue
		}
		if err := deregister(ctx, agent, id); err != nil {
			return ids, fmt.Errorf("deregister %s: %w", id, plainly(agent.Address(), err))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func deregister(ctx context.Context, agent *consulagent.Agent, id string) error {
	return agent.Agent().ServiceDeregisterOpts(id, (&api.QueryOptions{}).WithContext(ctx))
}
