// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/static"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// ConsulSource is the source consul. Where the agent is stands in
// Config.Consul.
type ConsulSource struct {
	Enabled  bool
	NodeName string
	Reach    consul.Reach
	// Intentions decides what no intention does; IntentionsAgent: as Consul
	// has it.
	Intentions Intentions
	Register   bool
	DNS        netip.AddrPort // invalid: names of Consul go where all others go
	Domain     string         // of Consul's DNS names
	Services   []consul.Service
}

// Intentions is a default for what no intention decides.
type Intentions string

// The defaults of intentions.
const (
	IntentionsAgent Intentions = "agent"
	IntentionsAllow Intentions = "allow"
	IntentionsDeny  Intentions = "deny"
)

// ConsulOptions returns the options of the source consul, all but what only a
// running node has.
func (c *Config) ConsulOptions() consul.Options {
	s := &c.Sources.Consul
	o := consul.Options{
		Node: c.MeshNode(), AgentNode: s.NodeName, Namespace: c.Consul.Namespace, Partition: c.Consul.Partition,
		Reach: s.Reach, HBONEPort: c.Listeners.InboundHBONE.Port(), InboundPort: c.Listeners.InboundMTLS.Port(),
		Register: s.Register, Services: s.Services, Domain: s.Domain,
		Workload: mesh.Workload{
			Inbound: c.Defaults.Inbound, InboundLocal: c.Defaults.InboundLocal,
			Egress: c.Defaults.Egress, OnProxyDown: c.Defaults.OnProxyDown,
		},
	}
	if s.Intentions != IntentionsAgent {
		o.DefaultIntention = mesh.Action(s.Intentions)
	}
	return o
}

// consulServices is a list of mappings with a shape of their own.
func consulServices(p *[]consul.Service) value {
	return value{
		want: "a mapping with name, and any of namespace, enabled, match, port, upstreams, register",
		list: true, kind: kindTree, fields: []string{},
		set: func(r raw) error {
			s := consulService(r.at)
			for _, other := range *p {
				if other.Name == s.Name && s.Name.Name != "" {
					r.at.Rejectf("service %q is there twice", s.Name)
				}
			}
			*p = append(*p, s)
			return nil
		},
		reset: func() { *p = nil },
		get: func() []any {
			items := make([]any, len(*p))
			for i := range *p {
				items[i] = shownConsulService(&(*p)[i])
			}
			return items
		},
		at: p, take: takeInto(p),
	}
}

func consulService(v yamlconf.Value) consul.Service {
	m := v.Map()
	defer m.Done()
	s := consul.Service{Name: mesh.Name{Name: m.Required("name").Text()}}
	if ns := m.Get("namespace"); ns.Present() {
		s.Name.Namespace = ns.Label()
	}
	if on := m.Get("enabled"); on.Present() {
		s.LeftOut = !on.Bool()
	}
	for _, key := range []string{"match", "port", "upstreams"} {
		if x := m.Get(key); s.LeftOut && x.Present() {
			x.Reject("found "+key+" beside enabled: false", "no "+key+": the node has nothing to do with the service")
		}
	}
	m.Get("match").List(func(v yamlconf.Value) {
		if sel, ok := static.Selector(v); ok {
			s.Match = append(s.Match, sel)
		}
	})
	if p := m.Get("port"); p.Present() {
		s.Port = p.Port()
	}
	m.Get("upstreams").List(func(v yamlconf.Value) { s.Upstreams = append(s.Upstreams, consulUpstream(v, s.Name.Namespace)) })
	if r := m.Get("register"); r.Present() {
		s.Register = consulRegistration(r)
	}
	return s
}

func consulUpstream(v yamlconf.Value, namespace string) consul.Upstream {
	m := v.Map()
	defer m.Done()
	for _, key := range []string{"subset", "peer", "partition"} {
		if x := m.Get(key); x.Present() {
			x.Reject("found "+key, "no "+key+": a subset is chosen by a service-resolver, peers and partitions are behind mesh gateways")
		}
	}
	u := consul.Upstream{
		Listen:  m.Required("listen").AddrPort(),
		Service: mesh.Name{Namespace: namespace, Name: m.Required("service").Text()},
	}
	if ns := m.Get("namespace"); ns.Present() {
		u.Service.Namespace = ns.Label()
	}
	if dc := m.Get("datacenter"); dc.Present() {
		u.Datacenter = dc.Text()
	}
	return u
}

func consulRegistration(v yamlconf.Value) *consul.Registration {
	m := v.Map()
	defer m.Done()
	r := &consul.Registration{Port: m.Required("port").Port()}
	if x := m.Get("id"); x.Present() {
		r.ID = x.Text()
	}
	if x := m.Get("address"); x.Present() {
		r.Address = x.Addr().String()
	}
	m.Get("tags").List(func(v yamlconf.Value) { r.Tags = append(r.Tags, v.Text()) })
	if x := m.Get("meta"); x.Present() {
		r.Meta = make(map[string]string)
		meta := x.Map()
		for _, key := range meta.Keys() {
			r.Meta[key] = meta.Get(key).Scalar()
		}
		meta.Done()
	}
	if x := m.Get("weights"); x.Present() {
		w := x.Map()
		if p := w.Get("passing"); p.Present() {
			r.Passing = int(p.Int(1, 65535))
		}
		if p := w.Get("warning"); p.Present() {
			r.Warning = int(p.Int(1, 65535))
		}
		w.Done()
	}
	m.Get("checks").List(func(v yamlconf.Value) { r.Checks = append(r.Checks, consulCheck(v)) })
	return r
}

// The defaults of checks.
const (
	checkInterval = 10 * time.Second
	checkTimeout  = 5 * time.Second
)

func consulCheck(v yamlconf.Value) consul.Check {
	m := v.Map()
	defer m.Done()
	c := consul.Check{Interval: checkInterval, Timeout: checkTimeout}
	if x := m.Get("name"); x.Present() {
		c.Name = x.Text()
	}
	n := 0
	for _, k := range []struct {
		key string
		to  *string
	}{{"tcp", &c.TCP}, {"http", &c.HTTP}, {"grpc", &c.GRPC}} {
		if x := m.Get(k.key); x.Present() {
			*k.to = x.Text()
			n++
		}
	}
	if v.IsMap() && n != 1 {
		v.Reject("found "+strconv.Itoa(n)+" kinds of checks in one entry", "exactly one of tcp: host:port, http: URL, grpc: host:port")
	}
	if x := m.Get("interval"); x.Present() {
		c.Interval = x.Duration(time.Second, time.Hour)
	}
	if x := m.Get("timeout"); x.Present() {
		c.Timeout = x.Duration(10*time.Millisecond, time.Hour)
	}
	if x := m.Get("deregisterCriticalAfter"); x.Present() {
		c.DeregisterAfter = x.Duration(time.Minute, year)
	}
	return c
}

// shownConsulService is what YAML would hold.
func shownConsulService(s *consul.Service) map[string]any {
	out := map[string]any{"name": s.Name.Name}
	put(out, "namespace", s.Name.Namespace)
	if s.LeftOut {
		out["enabled"] = false
	}
	var match, ups []any
	for _, sel := range s.Match {
		match = append(match, map[string]any{sel.Kind.String(): sel.Value})
	}
	for _, u := range s.Upstreams {
		up := map[string]any{"listen": u.Listen.String(), "service": u.Service.Name}
		if u.Service.Namespace != s.Name.Namespace {
			up["namespace"] = u.Service.Namespace
		}
		put(up, "datacenter", u.Datacenter)
		ups = append(ups, up)
	}
	put(out, "match", match)
	put(out, "port", int(s.Port))
	put(out, "upstreams", ups)
	if r := s.Register; r != nil {
		out["register"] = shownRegistration(r)
	}
	return out
}

func shownRegistration(r *consul.Registration) map[string]any {
	out := map[string]any{"port": int(r.Port)}
	put(out, "id", r.ID)
	put(out, "address", r.Address)
	var tags, checks []any
	for _, t := range r.Tags {
		tags = append(tags, t)
	}
	meta := make(map[string]any)
	for k, v := range r.Meta {
		meta[k] = v
	}
	w := make(map[string]any)
	put(w, "passing", r.Passing)
	put(w, "warning", r.Warning)
	for _, c := range r.Checks {
		check := map[string]any{"interval": formatDuration(c.Interval), "timeout": formatDuration(c.Timeout)}
		put(check, "name", c.Name)
		put(check, "tcp", c.TCP)
		put(check, "http", c.HTTP)
		put(check, "grpc", c.GRPC)
		if c.DeregisterAfter > 0 {
			check["deregisterCriticalAfter"] = formatDuration(c.DeregisterAfter)
		}
		checks = append(checks, check)
	}
	put(out, "tags", tags)
	if len(meta) > 0 {
		out["meta"] = meta
	}
	if len(w) > 0 {
		out["weights"] = w
	}
	put(out, "checks", checks)
	return out
}

// put sets what is not empty.
func put[T any](m map[string]any, key string, v T) {
	switch x := any(v).(type) {
	case string:
		if x == "" {
			return
		}
	case int:
		if x == 0 {
			return
		}
	case []any:
		if len(x) == 0 {
			return
		}
	}
	m[key] = v
}
