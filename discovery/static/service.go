// SPDX-License-Identifier: Apache-2.0

package static

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// The defaults of health checks: those of the kubelet's probes, but for the
// timeout of one second, which a loaded node misses.
const (
	defaultCheckInterval  = 10 * time.Second
	defaultCheckTimeout   = 2 * time.Second
	defaultCheckHealthy   = 1
	defaultCheckUnhealthy = 3
)

type service struct {
	*mesh.Service
	place string
}

func (d *decoder) service(m *yamlconf.Map) {
	s := &service{place: m.Value().Position(), Service: &mesh.Service{Name: d.name(m)}}
	s.Ports = servicePorts(m.Required("ports"))
	s.Hostnames = distinct(m.Get("hostnames"), func(v yamlconf.Value) string { return d.claim(v, v.Hostname(), s.Name) })
	s.VirtualIPs = d.virtualIPs(m.Get("virtualIPs"), s.Name)
	s.Balance = either(m.Get("balance"), mesh.BalanceLeastRequest, mesh.BalanceLeastRequest, mesh.BalanceRoundRobin, mesh.BalanceRandom)
	s.HealthCheck = healthCheck(m.Get("healthCheck"))
	s.ConnectTimeout = m.Get("connectTimeout").Duration(time.Millisecond, 10*time.Minute)
	s.Endpoints = d.endpoints(m.Get("endpoints"), s.Service)
	if s.Name.Name == "" {
		return
	}
	if before := d.services[s.Name]; before != nil {
		m.Get("name").Rejectf("service %q is there twice, first at %s", s.Name, before.place)
		return
	}
	d.services[s.Name] = s
	d.out.Services = append(d.out.Services, s.Service)
}

func servicePorts(v yamlconf.Value) []mesh.Port {
	var out []mesh.Port
	n := v.List(func(v yamlconf.Value) {
		m := v.Map()
		defer m.Done()
		p := mesh.Port{
			Name:     m.Get("name").Label(),
			Port:     m.Required("port").Port(),
			Protocol: either(m.Get("protocol"), mesh.ProtocolTCP, mesh.ProtocolTCP, mesh.ProtocolHTTP, mesh.ProtocolHTTP2, mesh.ProtocolGRPC),
		}
		for _, o := range out {
			if p.Port != 0 && o.Port == p.Port {
				m.Get("port").Rejectf("port %d is there twice", p.Port)
			}
			if p.Name != "" && o.Name == p.Name {
				m.Get("name").Rejectf("port name %q is there twice", p.Name)
			}
		}
		out = append(out, p)
	})
	if v.IsList() && n == 0 {
		v.Reject("found an empty list", "at least one port")
	}
	if n > 1 && slices.ContainsFunc(out, func(p mesh.Port) bool { return p.Name == "" }) {
		v.Reject("found several ports, and one without a name", "a name for each of several ports")
	}
	return out
}

func portList(s *mesh.Service) string {
	list := make([]string, len(s.Ports))
	for i, p := range s.Ports {
		list[i] = fmt.Sprint(p.Port)
	}
	return strings.Join(list, ", ")
}

func (d *decoder) virtualIPs(v yamlconf.Value, owner mesh.Name) []netip.Addr {
	is4, is6 := 0, 0
	out := distinct(v, func(v yamlconf.Value) netip.Addr {
		a := dialable(v)
		switch {
		case a.IsLoopback():
			v.Reject("found "+a.String(), "an address that is not loopback")
		case a.Is4():
			is4++
		case a.Is6():
			is6++
		}
		if a.IsValid() {
			d.claim(v, a.String(), owner)
		}
		return a
	})
	if is4 > 1 || is6 > 1 {
		v.Reject("found several virtual IPs of one family", "at most one IPv4 and one IPv6 address")
	}
	return out
}

// claim reports a hostname or virtual IP that another service has, and
// returns it.
func (d *decoder) claim(v yamlconf.Value, what string, owner mesh.Name) string {
	if before, ok := d.claimed[what]; ok && before.by != owner {
		v.Rejectf("%s belongs to service %q already, at %s", what, before.by, before.place)
	} else if !ok && what != "" {
		d.claimed[what] = taken{owner, v.Position()}
	}
	return what
}

func healthCheck(v yamlconf.Value) *mesh.HealthCheck {
	if !v.Present() {
		return nil
	}
	m := v.Map()
	defer m.Done()
	c := &mesh.HealthCheck{
		Interval: defaultCheckInterval, Timeout: defaultCheckTimeout,
		Healthy: defaultCheckHealthy, Unhealthy: defaultCheckUnhealthy,
	}
	http, tcp := m.Get("http"), m.Get("tcp")
	switch {
	case !v.IsMap():
	case http.Present() == tcp.Present():
		v.Reject("found neither or both of http and tcp", "http: /path, or tcp: true")
	case tcp.Present() && !tcp.Bool():
		tcp.Reject("found the boolean false", "true, or no healthCheck")
	}
	if http.Present() {
		c.HTTPPath = http.Text()
		if c.HTTPPath != "" && (c.HTTPPath[0] != '/' || strings.ContainsFunc(c.HTTPPath, func(r rune) bool { return r <= ' ' || r >= 0x7f })) {
			http.Reject(fmt.Sprintf("found %q", c.HTTPPath), "a path that begins with /, without spaces")
		}
	}
	if i := m.Get("interval"); i.Present() {
		c.Interval = i.Duration(100*time.Millisecond, time.Hour)
		c.Timeout = min(c.Timeout, c.Interval)
	}
	if t := m.Get("timeout"); t.Present() {
		c.Timeout = t.Duration(10*time.Millisecond, time.Minute)
		if c.Interval > 0 && c.Timeout > c.Interval {
			t.Reject(fmt.Sprintf("found %v, longer than the interval", c.Timeout), fmt.Sprintf("at most %v", c.Interval))
		}
	}
	if h := m.Get("healthy"); h.Present() {
		c.Healthy = int(h.Int(1, 100))
	}
	if u := m.Get("unhealthy"); u.Present() {
		c.Unhealthy = int(u.Int(1, 100))
	}
	return c
}
