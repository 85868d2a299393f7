// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// dnsMesh has a service in the default namespace, one of the same name in
// another namespace, and one with a host name of its own.
const dnsMesh = `
authorization: {default: allow}
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
services:
  - {name: web, hostnames: [www.shop.example], ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8080, node: a, workload: client}]}
  - {name: web, namespace: team, ports: [{port: 80}], endpoints: [{address: 10.77.0.1, port: 8081, node: a, workload: client}]}
`

// nameServer answers on a host, and remembers what it was asked.
type nameServer struct {
	mu    sync.Mutex
	asked map[string]int // by network and name
}

func (l *lab) nameServer(h *testnet.Host, address string) *nameServer {
	l.Helper()
	s := &nameServer{asked: map[string]int{}}
	stream, err := h.Listen("tcp", address)
	if err != nil {
		l.Fatal(err)
	}
	var packets net.PacketConn
	if err := h.Do(func() (err error) { packets, err = net.ListenPacket("udp", address); return err }); err != nil {
		l.Fatal(err)
	}
	for _, server := range []*dns.Server{
		{Listener: stream, Handler: s},
		{PacketConn: packets, Handler: s},
	} {
		done := make(chan struct{})
		go func() { defer close(done); _ = server.ActivateAndServe() }()
		l.Cleanup(func() { _ = stream.Close(); _ = packets.Close(); <-done })
	}
	return s
}

// ServeDNS implements dns.Handler. The names below big.example have more
// addresses than a datagram takes.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name, network := q.Question[0].Name, w.LocalAddr().Network()
	s.mu.Lock()
	s.asked[network+" "+name]++
	s.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	addresses := 1
	switch {
	case strings.HasSuffix(name, "big.example."):
		addresses = 60
	case !strings.HasSuffix(name, "outside.example."):
		m.Rcode, addresses = dns.RcodeNameError, 0
	}
	header := dns.RR_Header{Name: name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: 5}
	for i := range addresses {
		switch header.Rrtype {
		case dns.TypeA:
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: net.IPv4(198, 51, 100, byte(i+1))})
		case dns.TypeAAAA:
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: append(net.ParseIP("2001:db8::")[:15], byte(i+1))})
		}
	}
	if network == "udp" {
		m.Truncate(dns.MinMsgSize)
	}
	_ = w.WriteMsg(m)
}

func (s *nameServer) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[what]
}

// TestDNS asks as applications do: with glibc's resolver and with Go's.
func TestDNS(t *testing.T) {
	l := newLab(t, dnsMesh, "a")
	a := l.net.Host("a")
	upstream := l.nameServer(a, "10.77.0.1:53")
	if err := a.SetResolver("10.77.0.1"); err != nil {
		t.Fatal(err)
	}
	l.start("a", "dns: {upstreams: [10.77.0.1]}\n")
	vips := l.virtualIPs("a", "web")
	team := l.virtualIPs("a", "team/web")
	if len(vips) != 2 || len(team) != 2 || vips[0] == team[0] {
		t.Fatalf("virtual IPs %v and %v", vips, team)
	}

	// getent asks for A, AAAA or both by glibc; the exit code 2 is "not found".
	getent := func(l *lab, cgroup, database, name string) string {
		l.Helper()
		p, err := a.Start(testnet.Command{Name: "getent", Path: "/usr/bin/getent", Args: []string{database, name}, Cgroup: cgroup})
		if err != nil {
			l.Fatal(err)
		}
		_ = p.Wait(l.ctx()) // the output says it
		seen := map[string]bool{}
		var found []string
		for line := range strings.Lines(p.Stdout().String()) {
			if f := strings.Fields(line); len(f) > 0 && !seen[f[0]] {
				seen[f[0]] = true
				found = append(found, f[0])
			}
		}
		return strings.Join(found, " ")
	}
	for _, tc := range []struct{ name, database, host, want string }{
		{"A", "ahostsv4", "web.mesh.internal", vips[0]},
		{"AAAA", "ahostsv6", "web.mesh.internal", vips[1]},
		{"bare name", "ahostsv4", "web", vips[0]},
		{"upper case, and a dot at the end", "ahostsv4", "WEB.mesh.internal.", vips[0]},
		{"default namespace", "ahostsv4", "web.default.mesh.internal", vips[0]},
		{"another namespace", "ahostsv4", "web.team.mesh.internal", team[0]},
		{"another namespace, IPv6", "ahostsv6", "web.team.mesh.internal", team[1]},
		{"host name", "ahostsv4", "www.shop.example", vips[0]},
		{"unknown in the domain", "ahostsv4", "nobody.mesh.internal", ""},
		{"outside", "ahostsv4", "www.outside.example", "198.51.100.1"},
		{"outside, IPv6", "ahostsv6", "www.outside.example", "2001:db8::1"},
		{"unknown outside", "ahostsv4", "www.nowhere.example", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := getent(l.in(t), "client", tc.database, tc.host); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("Go's resolver", func(t *testing.T) {
		for _, host := range []string{"web", "web.mesh.internal", "www.shop.example"} {
			d := l.in(t).dial(a, "client", "-address", host+":81") // the port leads nowhere
			if d.Stage != "connect" || d.Error != "ECONNREFUSED" {
				t.Errorf("%s: %s at %s, want it to be found", host, d.Error, d.Stage)
			}
		}
		if d := l.in(t).dial(a, "client", "-address", "nobody.mesh.internal:81"); d.Error != "NXDOMAIN" {
			t.Errorf("got %s at %s, want NXDOMAIN", d.Error, d.Stage)
		}
	})
	t.Run("what does not fit a datagram comes over TCP", func(t *testing.T) {
		before := upstream.count("tcp www.big.example.")
		if got := getent(l.in(t), "client", "ahostsv4", "www.big.example"); len(strings.Fields(got)) != 60 {
			t.Errorf("got %d addresses, want 60", len(strings.Fields(got)))
		}
		if upstream.count("tcp www.big.example.") == before {
			t.Error("the resolver was not asked over TCP")
		}
	})
	t.Run("names of the mesh stay in it", func(t *testing.T) {
		for _, what := range []string{"udp web.mesh.internal.", "udp nobody.mesh.internal.", "udp web."} {
			if n := upstream.count(what); n > 0 {
				t.Errorf("%s was asked %d times outside", what, n)
			}
		}
	})
	t.Run("over TCP alone", func(t *testing.T) {
		const script = `import socket,struct
q=struct.pack('>HHHHHH',7,256,1,0,0,0)+b''.join(bytes([len(p)])+p for p in b'web.mesh.internal'.split(b'.'))+b'\0'+struct.pack('>HH',1,1)
s=socket.create_connection(('10.77.0.1',53),5)
s.sendall(struct.pack('>H',len(q))+q)
f=s.makefile('rb')
print(s.getpeername()[0], socket.inet_ntoa(f.read(struct.unpack('>H',f.read(2))[0])[-4:]))`
		if got, want := l.in(t).python(a, "client", script), "10.77.0.1 "+vips[0]; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("datagrams without connecting", func(t *testing.T) {
		const script = `import socket,struct
q=struct.pack('>HHHHHH',7,256,1,0,0,0)+b''.join(bytes([len(p)])+p for p in b'web.mesh.internal'.split(b'.'))+b'\0'+struct.pack('>HH',1,1)
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(q,('10.77.0.1',53))
m,who=s.recvfrom(4096)
print(*who, socket.inet_ntoa(m[-4:]))`
		if got, want := l.in(t).python(a, "client", script), "10.77.0.1 53 "+vips[0]; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("who is no workload asks the resolver itself", func(t *testing.T) {
		if got := getent(l.in(t), "nobody", "ahostsv4", "web.mesh.internal"); got != "" {
			t.Errorf("a process that is no workload was told %q", got)
		}
		if upstream.count("udp web.mesh.internal.") == 0 {
			t.Error("its query did not reach the resolver")
		}
		if got := getent(l.in(t), "nobody", "ahostsv4", "www.outside.example"); got != "198.51.100.1" {
			t.Errorf("got %q", got)
		}
	})
}

// python runs a script in a cgroup and returns its output.
func (l *lab) python(where place, cgroup, script string) string {
	l.Helper()
	out, err := where.Run(l.ctx(), testnet.Command{
		Name: "python", Path: "/usr/bin/python3", Args: []string{"-c", script}, Cgroup: cgroup,
	})
	if err != nil {
		l.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
