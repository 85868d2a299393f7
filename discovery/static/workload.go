// SPDX-License-Identifier: Apache-2.0

package static

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// workload is one of any node.
type workload struct {
	*mesh.Workload
	node      string // empty: every node that has the file
	place     string
	upstreams []upstreamRef
}

// upstreamRef is an upstream whose service is to be checked once all are
// known.
type upstreamRef struct {
	mesh.Upstream
	service, port yamlconf.Value
}

func (d *decoder) workload(m *yamlconf.Map) {
	w := &workload{place: m.Value().Position(), Workload: &mesh.Workload{Name: d.name(m)}}
	w.node = d.nodeName(m.Get("node"))
	w.Identity = d.identity(m.Get("identity"), m.Value(), w.Name)
	here := w.node == "" || w.node == d.opts.Node.Name
	w.Selectors = d.matches(m, w.Name, here)
	if v := m.Get("netns"); v.Present() {
		w.NetNS = v.AbsolutePath()
	}
	w.upstreams = d.upstreams(m.Get("upstreams"), w.Namespace)
	for _, u := range w.upstreams {
		w.Upstreams = append(w.Upstreams, u.Upstream)
	}
	w.Exclude = exclusions(m.Get("exclude"))
	w.Inbound = either(m.Get("inbound"), d.opts.Defaults.Inbound, mesh.InboundStrict, mesh.InboundPermissive, mesh.InboundOff)
	w.InboundLocal = either(m.Get("inboundLocal"), d.opts.Defaults.InboundLocal, mesh.Allow, mesh.Deny)
	w.Egress = either(m.Get("egress"), d.opts.Defaults.Egress, mesh.EgressPassthrough, mesh.EgressRegisteredOnly)
	w.OnProxyDown = either(m.Get("onProxyDown"), d.opts.Defaults.OnProxyDown, mesh.ProxyDownRefuse, mesh.ProxyDownDirect)
	w.Splice = either(m.Get("splice"), "", mesh.SpliceOn, mesh.SpliceOff)
	if v := m.Get("maxConnections"); v.Present() {
		w.MaxConnections = int(v.Int(1, 1<<24))
	}
	if v := m.Get("mtlsPort"); v.Present() {
		w.MTLSPort = v.Port()
		d.ownPort(v, w, here)
	}
	w.Bypass = m.Get("bypass").Bool()
	if w.Name.Name == "" {
		return
	}
	if before := d.workloads[w.Name]; before != nil {
		m.Get("name").Rejectf("workload %q is there twice, first at %s", w.Name, before.place)
		return
	}
	d.workloads[w.Name] = w
	if here {
		d.out.Workloads = append(d.out.Workloads, w.Workload)
	}
}

// ownPort refuses a port of this node that another workload has for itself.
func (d *decoder) ownPort(v yamlconf.Value, w *workload, here bool) {
	if !here || w.MTLSPort == 0 {
		return
	}
	if before, dup := d.ownPorts[w.MTLSPort]; dup {
		v.Rejectf("port %d belongs to workload %q already, at %s", w.MTLSPort, before.by, before.place)
		return
	}
	d.ownPorts[w.MTLSPort] = taken{w.Name, v.Position()}
}

// either decodes one of the words, or returns otherwise if v is absent.
func either[T ~string](v yamlconf.Value, otherwise T, words ...T) T {
	if !v.Present() {
		return otherwise
	}
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	return T(v.OneOf(list...))
}

// identity decodes an identity; where there is none it is made of the name.
func (d *decoder) identity(v, owner yamlconf.Value, n mesh.Name) spiffeid.ID {
	if v.Present() {
		return v.Identity()
	}
	if n.Name == "" || n.Namespace == "" {
		return spiffeid.ID{} // already reported
	}
	id, err := defaultIdentity(d.opts.Node.TrustDomain, n)
	if err != nil {
		owner.Reject("found no identity, and node.trustDomain is not set", `"identity" here, or "node.trustDomain"`)
	}
	return id
}

func defaultIdentity(td spiffeid.TrustDomain, n mesh.Name) (spiffeid.ID, error) {
	if td.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("make identity of %s: no trust domain", n)
	}
	return spiffeid.FromSegments(td, "ns", n.Namespace, "sa", n.Name)
}

// nodeName decodes the name of a node that the files know.
func (d *decoder) nodeName(v yamlconf.Value) string {
	if !v.Present() {
		return ""
	}
	name := v.Label()
	if name != "" && d.nodes[name] == nil {
		v.Reject(fmt.Sprintf("found node %q, which does not exist", name), strings.Join(sortedKeys(d.nodes), ", "))
		return ""
	}
	return name
}

func (d *decoder) matches(m *yamlconf.Map, owner mesh.Name, here bool) []mesh.Selector {
	match := m.Required("match")
	var out []mesh.Selector
	n := match.List(func(v yamlconf.Value) {
		s, ok := d.selector(v)
		if !ok {
			return
		}
		if before, dup := d.selectors[s]; dup && here {
			v.Rejectf("%s %q belongs to workload %q already, at %s", s.Kind, s.Value, before.by, before.place)
			return
		}
		if here {
			d.selectors[s] = taken{owner, v.Position()}
		}
		out = append(out, s)
	})
	if match.IsList() && n == 0 {
		match.Reject("found an empty list", "at least one of unit, cgroup, cgroupPrefix, user")
	}
	return out
}

func (d *decoder) selector(v yamlconf.Value) (mesh.Selector, bool) {
	m := v.Map()
	defer m.Done()
	kinds := []struct {
		key    string
		kind   mesh.SelectorKind
		decode func(yamlconf.Value) string
	}{
		{"unit", mesh.SelectUnit, unit},
		{"cgroup", mesh.SelectCgroup, cgroup},
		{"cgroupPrefix", mesh.SelectCgroupPrefix, cgroup},
		{"user", mesh.SelectUser, d.user},
	}
	var out mesh.Selector
	n := 0
	for _, k := range kinds {
		if at := m.Get(k.key); at.Present() {
			n++
			out = mesh.Selector{Kind: k.kind, Value: k.decode(at)}
		}
	}
	if v.IsMap() && n != 1 {
		v.Reject(fmt.Sprintf("found %d selectors in one entry", n), "exactly one of unit, cgroup, cgroupPrefix, user")
	}
	return out, n == 1 && out.Value != ""
}

// unitTypes are the systemd units that have a cgroup (systemd.unit(5)).
var unitTypes = []string{".service", ".scope", ".slice", ".socket", ".mount", ".swap"}

func unit(v yamlconf.Value) string {
	s := v.Text()
	if s == "" {
		return ""
	}
	name, ok := "", false
	for _, t := range unitTypes {
		if name, ok = strings.CutSuffix(s, t); ok {
			break
		}
	}
	// The only wildcard is the instance of a template.
	name = strings.TrimSuffix(name, "@*")
	if !ok || name == "" || strings.ContainsAny(name, "*/ \t\n") || len(s) > 255 {
		v.Reject(fmt.Sprintf("found %q", s), `a systemd unit such as web.service, or web@*.service for all instances of a template`)
		return ""
	}
	return s
}

func cgroup(v yamlconf.Value) string {
	s := v.AbsolutePath()
	if s == "/" {
		v.Reject(`found "/"`, "a path below the root of the cgroup hierarchy, such as /system.slice/web.service")
		return ""
	}
	return s
}

func (d *decoder) user(v yamlconf.Value) string {
	s := v.Scalar()
	if s == "" {
		return ""
	}
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n < 1<<32-1 {
		return strconv.FormatUint(n, 10)
	}
	uid, err := d.opts.LookupUser(s)
	if err != nil {
		v.Reject(fmt.Sprintf("found user %q, which this system does not have", s), "a user name or a uid")
		return ""
	}
	return uid
}

func (d *decoder) upstreams(v yamlconf.Value, namespace string) []upstreamRef {
	var out []upstreamRef
	places := make(map[netip.AddrPort]string)
	v.List(func(v yamlconf.Value) {
		m := v.Map()
		defer m.Done()
		listen, service, port := m.Required("listen"), m.Required("service"), m.Get("port")
		u := upstreamRef{service: service, port: port}
		u.Listen = listen.AddrPort()
		u.Service = reference(service, namespace)
		u.Port = port.Port()
		if !u.Listen.IsValid() || u.Service.IsZero() {
			return
		}
		if !u.Listen.Addr().IsLoopback() {
			listen.Reject("found "+u.Listen.String(), "a loopback address with a port, such as 127.0.0.1:9191")
		}
		if before, dup := places[u.Listen]; dup {
			listen.Rejectf("%s is an upstream of this workload already, at %s", u.Listen, before)
			return
		}
		places[u.Listen] = listen.Position()
		out = append(out, u)
	})
	return out
}

// checkUpstreams looks for the services that upstreams stand for. Another
// source may have a service that the files do not, so that is not an error.
func (d *decoder) checkUpstreams() {
	for _, n := range sortedNames(d.workloads) {
		for _, u := range d.workloads[n].upstreams {
			svc := d.services[u.Service]
			if svc == nil || u.Port == 0 || svc.PortIndex(u.Port) >= 0 {
				continue
			}
			u.port.Reject(fmt.Sprintf("found %d, which service %q does not have", u.Port, u.Service), portList(svc.Service))
		}
	}
}

func exclusions(v yamlconf.Value) mesh.Exclusions {
	m := v.Map()
	defer m.Done()
	return mesh.Exclusions{
		OutboundPorts: ports(m.Get("outboundPorts")),
		OutboundCIDRs: cidrs(m.Get("outboundCIDRs")),
		InboundPorts:  ports(m.Get("inboundPorts")),
		InboundCIDRs:  cidrs(m.Get("inboundCIDRs")),
	}
}

func ports(v yamlconf.Value) []uint16       { return distinct(v, yamlconf.Value.Port) }
func cidrs(v yamlconf.Value) []netip.Prefix { return distinct(v, yamlconf.Value.Prefix) }

// distinct decodes a list whose items must differ.
func distinct[T comparable](v yamlconf.Value, decode func(yamlconf.Value) T) []T {
	var out []T
	seen := make(map[T]bool)
	var zero T
	v.List(func(v yamlconf.Value) {
		item := decode(v)
		switch {
		case item == zero: // already reported
		case seen[item]:
			v.Rejectf("%v is there twice", item)
		default:
			seen[item] = true
			out = append(out, item)
		}
	})
	return out
}

// Selector decodes an entry of a workload's match, for other places that say
// which processes something consists of.
func Selector(v yamlconf.Value) (mesh.Selector, bool) {
	return newDecoder(Options{}.withDefaults()).selector(v)
}
