// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// The names of the broad queries, for people.
const (
	querySelf     = "agent"
	queryServices = "services of this agent"
	queryLeader   = "leader of the servers"
	queryRoots    = "CA roots"
	queryNames    = "names of services"
	queryTo       = "intentions for services here"
	queryFrom     = "intentions of services here"
	queryEntries  = "configuration entries "
)

// entryKinds are the configuration entries that chains follow from, or that
// say something themselves.
var entryKinds = []string{
	"service-resolver", "service-splitter", "service-router", kindServiceDefaults, kindProxyDefaults, kindMesh,
}

// The kinds that say something about the services here, too.
const (
	kindServiceDefaults = "service-defaults"
	kindProxyDefaults   = "proxy-defaults"
	kindMesh            = "mesh"
)

// firstWords are the queries that a first view waits for.
var firstWords = func() []string {
	list := []string{querySelf, queryServices, queryRoots, queryNames}
	for _, kind := range entryKinds {
		list = append(list, queryEntries+kind)
	}
	return list
}()

const (
	// pollInterval is how often the agent is asked for its services, which
	// it has no blocking query for. It is also how an agent that hangs is
	// noticed. A change of the catalog has them asked for at once.
	pollInterval = 5 * time.Second
	// awaitInterval is the same while a service here has nobody listening, for
	// awaitTime: it is about to start, or it is stopped.
	awaitInterval, awaitTime = time.Second, time.Minute
	// leaderInterval is how often the servers are asked for their leader. A
	// query that waits for a change does not hear that there is none.
	leaderInterval = 10 * time.Second
	// selfInterval is how often the agent is asked about itself.
	selfInterval = time.Minute
)

func (r *run) start(ctx context.Context) {
	r.ctx = ctx
	r.tasks.Go(func() { r.pollAgent(ctx) })
	r.tasks.Go(func() { r.pollLeader(ctx) })
	r.tasks.Go(func() {
		follow(ctx, r, queryRoots, get[caRoots](r, question{path: "/v1/agent/connect/ca/roots"}), r.takeRoots)
	})
	r.tasks.Go(func() {
		names := question{path: "/v1/catalog/services", filter: `ServiceKind == ""`}
		follow(ctx, r, queryNames, get[map[string][]string](r, names), r.takeNames)
	})
	for _, kind := range entryKinds {
		r.tasks.Go(func() {
			entries := question{path: "/v1/config/" + kind}
			if kind == kindProxyDefaults || kind == kindMesh {
				entries.namespace = standard // each partition has one, in there
			}
			follow(ctx, r, queryEntries+kind, get[[]configEntry](r, entries), func(list []configEntry, _ *api.QueryMeta) {
				r.takeEntries(kind, list)
			})
		})
	}
}

// pollAgent asks the agent for what it knows itself.
func (r *run) pollAgent(ctx context.Context) {
	var asked time.Time // when it was asked about itself
	for {
		if time.Since(asked) > selfInterval {
			if !r.askSelf(ctx) {
				asked = time.Time{}
			} else {
				asked = time.Now()
			}
		}
		interval := r.pollOnce(ctx)
		t := time.NewTimer(r.random.jittered(interval))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		case <-r.kick:
			t.Stop()
			if !sleep(ctx, pace) {
				return
			}
		}
	}
}

// pollLeader asks for the leader of the servers. Whatever the answer, all that
// is known stays in force; it says since when that may be old.
func (r *run) pollLeader(ctx context.Context) {
	for {
		var leader string
		_, err := r.ask(ctx, question{path: pathLeader}, &leader)
		if err == nil && leader == "" {
			err = errNoLeader
		}
		if ctx.Err() != nil {
			return
		}
		r.post(ctx, func() {
			if err != nil {
				r.failed(queryLeader, err)
			} else {
				r.worked(queryLeader)
			}
		})
		if !sleep(ctx, r.random.jittered(leaderInterval)) {
			return
		}
	}
}

func (r *run) kickLocal() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// pollOnce returns how long to wait for the next time.
func (r *run) pollOnce(ctx context.Context) time.Duration {
	all, asked := make(map[string]*agentService), time.Now()
	var body json.RawMessage
	_, err := r.ask(ctx, question{path: "/v1/agent/services"}, &body)
	same := err == nil && sha256.Sum256(body) == r.polled // as the last time, and every time while nothing happens
	if err == nil && !same {
		if err = json.Unmarshal(body, &all); err == nil {
			r.polled = sha256.Sum256(body)
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			r.post(ctx, func() { r.failed(queryServices, err) })
		}
		return awaitInterval
	}
	var listeners []Listener
	if r.opts.Listeners != nil {
		if listeners, err = r.opts.Listeners(); err != nil {
			r.log.Warn("find out who listens on the ports of services", "error", err)
		}
	}
	interval := make(chan time.Duration, 1)
	r.post(ctx, func() {
		r.worked(queryServices)
		r.asked = asked
		if same {
			all = r.all
		}
		r.takeLocal(all, listeners)
		next := pollInterval
		if r.services.waiting && time.Since(r.services.indexed) < awaitTime {
			next = awaitInterval
		}
		interval <- next
	})
	select {
	case d := <-interval:
		return d
	case <-ctx.Done():
		return pollInterval
	}
}

func (r *run) takeLocal(all map[string]*agentService, listeners []Listener) {
	listeners = atPortsOf(all, listeners)
	if reflect.DeepEqual(all, r.all) && slices.Equal(listeners, r.listeners) {
		return
	}
	r.all, r.listeners = all, listeners
	r.tenancy.learn(all)
	for _, s := range all {
		if r.home.datacenter == "" {
			r.home.datacenter = s.Datacenter // for a token that may not ask the agent
		}
		if s.Partition != "" && r.opts.Partition == "" && r.denied[querySelf] != "" {
			r.home.partition = s.Partition // likewise
		}
	}
	r.services.stale, r.registrar.stale = true, true
	r.planned, r.changed = false, true
}

// askSelf finds out where the agent is. The rule for it is one that few tokens
// have; its denial says what the agent's node is called.
func (r *run) askSelf(ctx context.Context) bool {
	var self agentSelf
	_, err := r.ask(ctx, question{path: "/v1/agent/self"}, &self)
	if err != nil && !refused(err) {
		if ctx.Err() == nil {
			r.post(ctx, func() { r.failed(querySelf, err) })
		}
		return false
	}
	r.post(ctx, func() {
		if err != nil {
			r.takeDenial(err)
			return
		}
		r.worked(querySelf)
		r.takeSelf(&self)
	})
	return true
}

func (r *run) takeSelf(self *agentSelf) {
	home := location{node: self.Config.NodeName, datacenter: self.Config.Datacenter, partition: cmp.Or(self.Config.Partition, r.opts.Partition, standard)}
	if r.opts.AgentNode != "" {
		home.node = r.opts.AgentNode
	}
	domain := strings.TrimSuffix(self.DebugConfig.DNSDomain, ".")
	if domain == "" {
		domain = r.opts.Domain
	}
	if domain != r.domain && domain != r.opts.Domain {
		r.log.Warn("the Consul agent's DNS domain is another than the configured one, by which names are forwarded to it",
			"agent", domain, "sources.consul.domain", r.opts.Domain)
	}
	if home != r.home || domain != r.domain || self.Member.Addr != r.addressOfAgent {
		r.home, r.domain, r.addressOfAgent = home, domain, self.Member.Addr
		r.rebuild()
	}
	r.defaults = mesh.Action(self.DebugConfig.DefaultIntentionPolicy)
	r.resetDefault()
}

var deniedNode = regexp.MustCompile(`'agent:read' on "([^"]+)"`)

func (r *run) takeDenial(err error) {
	home := r.home
	home.partition = cmp.Or(r.opts.Partition, home.partition, standard)
	if r.opts.AgentNode != "" {
		home.node = r.opts.AgentNode
	} else if m := deniedNode.FindStringSubmatch(err.Error()); m != nil {
		home.node = m[1]
	}
	if home.node == "" {
		r.failed(querySelf, errors.New("the agent does not say what its node is called; set sources.consul.nodeName"))
		return
	}
	r.deny(querySelf, err)
	if home != r.home {
		r.home = home
		r.rebuild()
	}
}

func (r *run) takeRoots(roots caRoots, _ *api.QueryMeta) {
	td, err := trustDomainOf(&roots)
	if err != nil {
		r.failed(queryRoots, err)
		return
	}
	if td != r.trustDomain {
		r.trustDomain = td
		r.rebuild()
	}
}

// takeNames is about the catalog: something in it changed, and which services
// there are.
func (r *run) takeNames(names map[string][]string, meta *api.QueryMeta) {
	next := make(map[string]bool, len(names))
	for n := range names {
		if n != "consul" {
			next[n] = true
		}
	}
	if !maps.Equal(next, r.catalog) {
		r.catalog = next
		r.planned = false
	}
	r.lacks(queryNames, `service_prefix "" { policy = "read" }, node_prefix "" { policy = "read" }`, meta.ResultsFilteredByACLs)
	if r.fallback != mesh.Action(meta.DefaultACLPolicy) {
		r.fallback = mesh.Action(meta.DefaultACLPolicy)
		r.resetDefault()
	}
	r.kickLocal()
	r.checks.sweepSoon()
}

// takeEntries has the chains compiled anew that the changed entries concern.
func (r *run) takeEntries(kind string, list []configEntry) {
	next := make(map[mesh.Name]configEntry, len(list))
	for _, e := range list {
		next[mesh.Name{Namespace: e.Namespace, Name: e.Name}.Canonical()] = e
	}
	before := r.entries[kind]
	r.entries[kind] = next
	touched := make(map[mesh.Name]bool)
	for n, e := range next {
		if old, ok := before[n]; !ok || old.ModifyIndex != e.ModifyIndex {
			touched[n] = true
		}
	}
	for n := range before {
		if _, ok := next[n]; !ok {
			touched[n] = true
		}
	}
	if len(touched) == 0 {
		return
	}
	r.changed = true
	r.planned = false // an entry makes a service known that has no instance
	for n := range touched {
		old, e := before[n], next[n]
		r.services.stale = r.services.stale || !sameGateways(&old, &e)
	}
	everything := kind == kindProxyDefaults || kind == kindMesh
	for _, c := range r.chains {
		if everything || c.concerns(touched) {
			r.fetches.chain(c)
		}
	}
}

// resetDefault settles what decides where no intention does: configuration,
// then the agent's default for intentions, then the ACLs'. Until one of them
// is known, nobody enters.
func (r *run) resetDefault() {
	next := mesh.ActionDeny
	for _, a := range []mesh.Action{r.opts.DefaultIntention, r.defaults, r.fallback} {
		if a == mesh.ActionAllow || a == mesh.ActionDeny {
			next = a
			break
		}
	}
	if next != r.services.byDefault {
		r.services.byDefault = next
		r.planned, r.changed = false, true
	}
}

// rebuild translates everything anew.
func (r *run) rebuild() {
	for _, c := range r.chains {
		c.dirty = true
	}
	r.services.stale = true
	r.planned, r.changed = false, true
}
