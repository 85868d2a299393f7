// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
)

func TestMeshNames(t *testing.T) {
	tests := []struct {
		name   string
		qtype  uint16
		rcode  int
		want   []string // data of the answers
		result Result
		soa    string // owner of the authority's record
	}{
		{"web.mesh.internal.", miekg.TypeA, miekg.RcodeSuccess, []string{"240.240.0.1"}, ResultMesh, ""},
		{"web.mesh.internal.", miekg.TypeAAAA, miekg.RcodeSuccess, []string{"2001:2::1"}, ResultMesh, ""},
		{"web.mesh.internal.", miekg.TypeANY, miekg.RcodeSuccess, []string{"240.240.0.1", "2001:2::1"}, ResultMesh, ""},
		{"WeB.mEsH.iNtErNaL.", miekg.TypeA, miekg.RcodeSuccess, []string{"240.240.0.1"}, ResultMesh, ""},
		{"web.", miekg.TypeA, miekg.RcodeSuccess, []string{"240.240.0.1"}, ResultMesh, ""},
		{"api.example.com.", miekg.TypeA, miekg.RcodeSuccess, []string{"240.240.0.1"}, ResultMesh, ""},
		{"db.shop.mesh.internal.", miekg.TypeA, miekg.RcodeSuccess, []string{"240.240.0.2"}, ResultMesh, ""},

		{"db.shop.mesh.internal.", miekg.TypeAAAA, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"web.mesh.internal.", miekg.TypeHTTPS, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"web.mesh.internal.", miekg.TypeSVCB, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"web.mesh.internal.", miekg.TypeTXT, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"api.example.com.", miekg.TypeHTTPS, miekg.RcodeSuccess, nil, ResultNoData, "api.example.com."},
		{"web.", miekg.TypeHTTPS, miekg.RcodeSuccess, nil, ResultNoData, "web."},
		{"shop.mesh.internal.", miekg.TypeA, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"mesh.internal.", miekg.TypeA, miekg.RcodeSuccess, nil, ResultNoData, "mesh.internal."},
		{"mesh.internal.", miekg.TypeSOA, miekg.RcodeSuccess, []string{"ns.invalid. hostmaster.invalid. 1 3600 600 86400 5"}, ResultMesh, ""},

		{"nothing.mesh.internal.", miekg.TypeA, miekg.RcodeNameError, nil, ResultNoName, "mesh.internal."},
		{"_http._tcp.web.mesh.internal.", miekg.TypeSRV, miekg.RcodeNameError, nil, ResultNoName, "mesh.internal."},

		{"1.0.240.240.in-addr.arpa.", miekg.TypePTR, miekg.RcodeSuccess, []string{"web.mesh.internal."}, ResultMesh, ""},
		{"1.0.240.240.in-addr.arpa.", miekg.TypeTXT, miekg.RcodeSuccess, nil, ResultNoData, "1.0.240.240.in-addr.arpa."},
		{"9.0.240.240.in-addr.arpa.", miekg.TypePTR, miekg.RcodeNameError, nil, ResultNoName, "240.240.in-addr.arpa."},
		{
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.", miekg.TypePTR,
			miekg.RcodeSuccess,
			[]string{"web.mesh.internal."},
			ResultMesh, "",
		},
		{
			"F.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.", miekg.TypePTR,
			miekg.RcodeNameError, nil, ResultNoName, "0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.",
		},
	}
	w := newWorld(t, nil)
	for _, tt := range tests {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+tt.name+" "+miekg.TypeToString[tt.qtype], func(t *testing.T) {
				before := w.counts.get(tt.result)
				q := question(tt.name, tt.qtype)
				reply := w.ask(t, network, q)
				if reply.Rcode != tt.rcode || !reply.Authoritative || !reply.RecursionAvailable || reply.Truncated {
					t.Errorf("header %+v", reply.MsgHdr)
				}
				if len(reply.Question) != 1 || reply.Question[0] != q.Question[0] {
					t.Errorf("question %v", reply.Question)
				}
				if got := data(reply.Answer); !slices.Equal(got, tt.want) {
					t.Errorf("answer %q, want %q", got, tt.want)
				}
				if tt.soa != "" && (len(reply.Ns) != 1 || reply.Ns[0].Header().Name != tt.soa || reply.Ns[0].Header().Ttl != 5) {
					t.Errorf("authority %v, want SOA of %s", reply.Ns, tt.soa)
				}
				for _, rr := range reply.Answer {
					if rr.Header().Rrtype != miekg.TypeSOA && (rr.Header().Name != tt.name || rr.Header().Ttl != 10) {
						t.Errorf("record %v", rr)
					}
				}
				if got := w.counts.get(tt.result); got != before+1 {
					t.Errorf("%s counted %d times", tt.result, got-before)
				}
			})
		}
	}
}

// data returns the records without their headers.
func data(rrs []miekg.RR) []string {
	var all []string
	for _, rr := range rrs {
		all = append(all, rr.String()[len(rr.Header().String()):])
	}
	return all
}

func TestEDNS(t *testing.T) {
	w := newWorld(t, nil)
	q := question("web.mesh.internal.", miekg.TypeA).SetEdns0(1232, true)
	opt := w.ask(t, "udp", q).IsEdns0()
	if opt == nil || opt.UDPSize() != maxAnswer || !opt.Do() || opt.Version() != 0 {
		t.Errorf("OPT %v", opt)
	}
	if reply := w.ask(t, "udp", question("web.mesh.internal.", miekg.TypeA)); reply.IsEdns0() != nil {
		t.Error("OPT in the answer to a query without")
	}
	q.IsEdns0().SetVersion(1)
	reply := w.ask(t, "udp", q)
	if reply.Rcode != miekg.RcodeBadVers || len(reply.Answer) != 0 || reply.IsEdns0().Version() != 0 {
		t.Errorf("answer to a version of the future: %v", reply)
	}
}

func TestApply(t *testing.T) {
	w := newWorld(t, nil)
	if err := w.Apply(Settings{Domain: "other.example", TTL: time.Minute, Upstreams: []netip.AddrPort{upstream(t, echo)}}); err != nil {
		t.Fatal(err)
	}
	if reply := w.ask(t, "udp", question("x.other.example.", miekg.TypeA)); reply.Rcode != miekg.RcodeNameError {
		t.Errorf("in the new domain: %v", reply)
	}
	if reply := w.ask(t, "udp", question("x.mesh.internal.", miekg.TypeA)); len(reply.Answer) != 1 {
		t.Errorf("in the old domain: %v", reply)
	}
	if reply := w.ask(t, "udp", question("web.", miekg.TypeA)); reply.Answer[0].Header().Ttl != 60 {
		t.Errorf("TTL: %v", reply)
	}
	if err := w.Apply(Settings{Domain: "a..b"}); err == nil {
		t.Error("a domain that is none is accepted")
	}
}

func TestReverseAddr(t *testing.T) {
	for _, name := range []string{
		"in-addr.arpa", "0.240.240.in-addr.arpa", "256.0.0.1.in-addr.arpa", "x.0.0.1.in-addr.arpa",
		"1.2.3.4.5.in-addr.arpa", "ip6.arpa", "1.ip6.arpa", "mesh.internal",
		"1x0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa",
		"g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa",
	} {
		if addr, ok := reverseAddr(name); ok {
			t.Errorf("reverseAddr(%q) = %v", name, addr)
		}
	}
	for _, s := range []string{"192.0.2.1", "2001:db8::1:2", "0.0.0.0", "ffff::"} {
		want := netip.MustParseAddr(s)
		full, err := miekg.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := reverseAddr(full[:len(full)-1]); !ok || got != want {
			t.Errorf("reverseAddr(%q) = %v, %v", full, got, ok)
		}
	}
}

func TestReverseZone(t *testing.T) {
	for prefix, want := range map[string]string{
		"240.240.0.0/16": "240.240.in-addr.arpa.", "240.240.128.0/17": "240.240.in-addr.arpa.",
		"10.0.0.0/8": "10.in-addr.arpa.", "0.0.0.0/0": "in-addr.arpa.", "192.0.2.1/32": "1.2.0.192.in-addr.arpa.",
		"2001:2::/48": "0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.", "2000::/3": "ip6.arpa.",
	} {
		if got := reverseZone(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("reverseZone(%s) = %s, want %s", prefix, got, want)
		}
	}
}
