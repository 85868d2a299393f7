// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOutbound(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.apply(State{
		Workloads:    []Workload{w.workload("web")},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), destination("[2001:2::1]:80", "db")},
	})
	web := w.process("web")
	for _, test := range []struct {
		name   string
		dial   string
		domain int
		source string
	}{
		{name: "IPv4", dial: "240.240.0.1:80", domain: unix.AF_INET},
		{name: "IPv6", dial: "[2001:2::1]:80", domain: unix.AF_INET6},
		{name: "IPv4-mapped", dial: "[::ffff:240.240.0.1]:80", domain: unix.AF_INET},
		{name: "bound source", dial: "240.240.0.1:80", domain: unix.AF_INET, source: "10.9.0.1:0"},
		{name: "bound IPv6 source", dial: "[2001:2::1]:80", domain: unix.AF_INET6, source: "[2001:db8::1]:0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			fd := web.socket(domainOf(test.dial), unix.SOCK_STREAM)
			if test.source != "" {
				if err := web.bind(fd, test.source); err != nil {
					t.Fatal(err)
				}
			}
			if err := web.connect(fd, test.dial); err != nil {
				t.Fatal(err)
			}
			if got := web.peer(fd).String(); got != test.dial {
				t.Errorf("client sees peer %s, want %s", got, test.dial)
			}
			flow, err := w.accepted(test.domain)
			if err != nil {
				t.Fatal(err)
			}
			dst := netip.MustParseAddrPort(test.dial)
			dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
			if flow.OriginalDst != dst || flow.WorkloadName != name("web") || flow.Service != name("db") || flow.ClientCookie == 0 {
				t.Errorf("flow %+v", flow)
			}
		})
	}
}
