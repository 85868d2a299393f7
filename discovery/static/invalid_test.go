// SPDX-License-Identifier: Apache-2.0

package static

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestInvalid has one wrong thing in each file. want is the line and key of
// the problem and a part of its text.
func TestInvalid(t *testing.T) {
	service := func(rest string) string {
		return "services:\n- name: web\n  " + strings.ReplaceAll(rest, "\n", "\n  ") + "\n"
	}
	web := func(endpoint string) string { return service("ports: [{port: 80}]\nendpoints:\n- " + endpoint) }
	workload := func(rest string) string {
		return "workloads:\n- name: w\n  match: [{user: 1}]\n  " + strings.ReplaceAll(rest, "\n", "\n  ") + "\n"
	}
	policy := func(rest string) string {
		return "policies:\n- name: p\n  action: allow\n  " + strings.ReplaceAll(rest, "\n", "\n  ") + "\n"
	}
	tests := []struct{ name, yaml, want string }{
		{"top key", "servces: []", `:1:1: unknown key "servces" (did you mean "services"?); allowed: nodes, workloads, services, policies, authorization`},
		{"key of a service", service("port: 80\nports: [{port: 80}]"), `:3:3: services[0]: unknown key "port" (did you mean "ports"?)`},

		{"node twice", "nodes:\n- {name: b, address: 10.0.0.2}\n- {name: b, address: 10.0.0.3}", `:3:10: nodes[1].name: node "b" is there twice, first at `},
		{"node's address taken", "nodes:\n- {name: b, address: 10.0.0.2}\n- {name: c, address: 10.0.0.2}", `:3:3: nodes[1]: node "c" has the tunnel address 10.0.0.2:15008 of node "b"`},
		{"this node elsewhere", "nodes: [{name: a, address: 10.0.0.9}]", ":1:28: nodes[0].address: found 10.0.0.9 for this node, whose node.address is 10.0.0.1"},
		{"node unspecified", "nodes: [{name: b, address: 0.0.0.0}]", ":1:28: nodes[0].address: found 0.0.0.0; allowed: an address that can be connected to"},
		{"node without address", "nodes: [{name: b}]", `:1:9: nodes[0]: "address" is missing`},
		{"zone without region", "nodes: [{name: b, address: 10.0.0.2, locality: {zone: x}}]", ":1:48: nodes[0].locality: found a zone without its region"},

		{"service twice", "services:\n- {name: web, ports: [{port: 80}]}\n- {name: web, namespace: default, ports: [{port: 81}]}", `:3:10: services[1].name: service "web" is there twice, first at `},
		{"service without ports", "services: [{name: web}]", `:1:12: services[0]: "ports" is missing`},
		{"service with no port", service("ports: []"), ":3:10: services[0].ports: found an empty list; allowed: at least one port"},
		{"port twice", service("ports: [{name: a, port: 80}, {name: b, port: 80}]"), ":3:48: services[0].ports[1].port: port 80 is there twice"},
		{"port name twice", service("ports: [{name: a, port: 80}, {name: a, port: 81}]"), `:3:39: services[0].ports[1].name: port name "a" is there twice`},
		{"port without name", service("ports: [{name: a, port: 80}, {port: 81}]"), ":3:10: services[0].ports: found several ports, and one without a name"},
		{"protocol", service("ports: [{port: 80, protocol: udp}]"), `:3:32: services[0].ports[0].protocol: found "udp"; allowed: tcp, http, http2, grpc`},
		{"balance", service("ports: [{port: 80}]\nbalance: maglev"), `:4:12: services[0].balance: found "maglev"; allowed: least_request, round_robin, random`},
		{"hostname twice", "services:\n- {name: a, ports: [{port: 80}], hostnames: [x.y]}\n- {name: b, ports: [{port: 80}], hostnames: [x.y]}", `:3:46: services[1].hostnames[0]: x.y belongs to service "a" already, at `},
		{"virtual IP twice", "services:\n- {name: a, ports: [{port: 80}], virtualIPs: [10.9.0.1]}\n- {name: b, ports: [{port: 80}], virtualIPs: [10.9.0.1]}", `10.9.0.1 belongs to service "a" already`},
		{"two virtual IPs", service("ports: [{port: 80}]\nvirtualIPs: [10.9.0.1, 10.9.0.2]"), ":4:15: services[0].virtualIPs: found several virtual IPs of one family"},
		{"loopback virtual IP", service("ports: [{port: 80}]\nvirtualIPs: [127.0.0.2]"), "services[0].virtualIPs[0]: found 127.0.0.2; allowed: an address that is not loopback"},
		{"check of both kinds", service("ports: [{port: 80}]\nhealthCheck: {http: /, tcp: true}"), ":4:16: services[0].healthCheck: found neither or both of http and tcp"},
		{"check of no kind", service("ports: [{port: 80}]\nhealthCheck: {interval: 1s}"), ":4:16: services[0].healthCheck: found neither or both of http and tcp"},
		{"check path", service("ports: [{port: 80}]\nhealthCheck: {http: health}"), `healthCheck.http: found "health"; allowed: a path that begins with /`},
		{"check timeout", service("ports: [{port: 80}]\nhealthCheck: {tcp: true, interval: 1s, timeout: 2s}"), "healthCheck.timeout: found 2s, longer than the interval; allowed: at most 1s"},

		{"endpoint without port", web("{address: 10.0.0.1}"), ":5:5: services[0].endpoints[0]: found an endpoint without a port"},
		{"endpoint without address", web("{port: 80}"), `:5:5: services[0].endpoints[0]: "address" is missing`},
		{"endpoint with a zone", web("{address: fe80::1%eth0, port: 80}"), `endpoints[0].address: found "fe80::1%eth0"; allowed: an IPv4 or IPv6 address without a zone`},
		{"endpoint unspecified", web(`{address: "::", port: 80}`), "endpoints[0].address: found ::; allowed: an address that can be connected to"},
		{"endpoint multicast", web("{address: 224.0.0.1, port: 80}"), "found 224.0.0.1; allowed: an address that can be connected to"},
		{"endpoint port range", web("{address: 10.0.0.1, port: 65536}"), "endpoints[0].port: found the number 65536; allowed: a number from 1 to 65535"},
		{"endpoint node unknown", web("{node: z, port: 80}"), `endpoints[0].node: found node "z", which does not exist; allowed: a`},
		{"endpoint loopback anywhere", web("{address: 127.0.0.1, port: 80}"), "endpoints[0].address: found 127.0.0.1 without a node"},
		{"endpoint twice", web("{node: a, port: 80}\n- {address: 10.0.0.1, port: 80}"), "endpoints[1]: endpoint 10.0.0.1:80 is there twice, first at "},
		{"endpoint of two workloads", web("{node: a, port: 80}") + "- {name: x, ports: [{port: 1}], endpoints: [{node: a, port: 80, workload: other}]}\n", `services[1].endpoints[0]: endpoint 10.0.0.1:80 has another node, workload, identity or transport than the one of service "web"`},
		{"port for several", service("ports: [{name: x, port: 80}, {name: y, port: 81}]\nendpoints: [{node: a, port: 80}]"), "endpoints[0].port: found one port, and the service has 2; allowed: ports: {x: …, y: …}"},
		{"ports incomplete", service("ports: [{name: x, port: 80}, {name: y, port: 81}]\nendpoints: [{node: a, ports: {x: 80}}]"), `endpoints[0].ports: "y" is missing`},
		{"ports of another", service("ports: [{name: x, port: 80}]\nendpoints: [{node: a, ports: {x: 80, z: 81}}]"), `endpoints[0].ports: unknown key "z"`},
		{"port and ports", service("ports: [{name: x, port: 80}]\nendpoints: [{node: a, port: 80, ports: {x: 80}}]"), "endpoints[0].ports: found both port and ports; allowed: one of them"},
		{"ports for a nameless one", service("ports: [{port: 80}]\nendpoints: [{node: a, ports: {x: 80}}]"), "endpoints[0].ports: found ports, and the service's port has no name"},
		{"mtls nowhere", web("{node: a, port: 80, transport: mtls}"), "endpoints[0]: found transport mtls without the address of its port"},
		{"sni outside", web("{address: 10.0.0.9, port: 80, transport: none, sni: web.example}"), "endpoints[0].sni: found sni with transport none; allowed: transport hbone or mtls"},
		{"sni of an address", web("{node: a, port: 80, sni: 10.0.0.1}"), `endpoints[0].sni: found "10.0.0.1"; allowed: a DNS name in lower case`},
		{"mtls port twice", "workloads:\n- {name: v, match: [{user: 1}], mtlsPort: 20001}\n- {name: w, match: [{user: 2}], mtlsPort: 20001}", `workloads[1].mtlsPort: port 20001 belongs to workload "v" already, at `},
		{"identity outside", web("{address: 10.0.0.9, port: 80, transport: none, identity: spiffe://x/y}"), "endpoints[0].identity: found identity with transport none"},
		{"hbone to nobody", web("{address: 10.0.0.9, port: 80, transport: hbone}"), "endpoints[0]: found neither workload nor identity"},
		{"two identities", "workloads: [{name: web, match: [{user: 1}]}]\n" + web("{node: a, port: 80, workload: web, identity: spiffe://x/y}"), `endpoints[0].identity: found spiffe://x/y, but workload "web" at `},
		{"workload elsewhere", "nodes: [{name: b, address: 10.0.0.2}]\nworkloads: [{name: web, node: b, match: [{user: 1}]}]\n" + web("{node: a, port: 80}"), `the endpoint is on node "a", but workload "web"`},
		{"weight", web("{node: a, port: 80, weight: 0}"), "endpoints[0].weight: found the number 0; allowed: a number from 1 to 10000"},

		{"workload twice", "workloads:\n- {name: w, match: [{user: 1}]}\n- {name: w, match: [{user: 2}]}", `:3:10: workloads[1].name: workload "w" is there twice, first at `},
		{"nothing matches", "workloads: [{name: w}]", `workloads[0]: "match" is missing`},
		{"empty match", "workloads: [{name: w, match: []}]", "workloads[0].match: found an empty list; allowed: at least one of unit, cgroup, cgroupPrefix, user"},
		{"two in one match", "workloads: [{name: w, match: [{user: 1, unit: x.service}]}]", "workloads[0].match[0]: found 2 selectors in one entry; allowed: exactly one of"},
		{"match shared", "workloads:\n- {name: v, match: [{unit: x.service}]}\n- {name: w, match: [{unit: x.service}]}", `workloads[1].match[0]: unit "x.service" belongs to workload "v" already, at `},
		{"unit type", "workloads: [{name: w, match: [{unit: web}]}]", `match[0].unit: found "web"; allowed: a systemd unit such as web.service`},
		{"unit wildcard", "workloads: [{name: w, match: [{unit: 'w*.service'}]}]", `match[0].unit: found "w*.service"; allowed`},
		{"cgroup root", "workloads: [{name: w, match: [{cgroup: /}]}]", `match[0].cgroup: found "/"; allowed: a path below the root`},
		{"cgroup relative", "workloads: [{name: w, match: [{cgroup: system.slice}]}]", `match[0].cgroup: found "system.slice"; allowed: an absolute path`},
		{"user unknown", "workloads: [{name: w, match: [{user: nobody-here}]}]", `match[0].user: found user "nobody-here", which this system does not have`},
		{"node of workload", workload("node: z"), `workloads[0].node: found node "z", which does not exist; allowed: a`},
		{"inbound", workload("inbound: open"), `workloads[0].inbound: found "open"; allowed: strict, permissive, off`},
		{"upstream twice", workload("upstreams:\n- {listen: 127.0.0.1:1, service: a}\n- {listen: 127.0.0.1:1, service: b}"), ":6:14: workloads[0].upstreams[1].listen: 127.0.0.1:1 is an upstream of this workload already, at "},
		{"upstream not loopback", workload("upstreams: [{listen: 10.0.0.1:1, service: a}]"), "upstreams[0].listen: found 10.0.0.1:1; allowed: a loopback address"},
		{"upstream without service", workload("upstreams: [{listen: 127.0.0.1:1}]"), `upstreams[0]: "service" is missing`},
		{"upstream port", workload("upstreams: [{listen: 127.0.0.1:1, service: web, port: 9}]") + service("ports: [{port: 80}]"), `upstreams[0].port: found 9, which service "web" does not have; allowed: 80`},
		{"upstream name", workload("upstreams: [{listen: 127.0.0.1:1, service: a/b/c}]"), `upstreams[0].service: found "a/b/c"; allowed: "name" or "namespace/name"`},
		{"exclusion twice", workload("exclude: {inboundPorts: [22, 22]}"), "exclude.inboundPorts[1]: 22 is there twice"},
		{"max connections", workload("maxConnections: 0"), "maxConnections: found the number 0; allowed: a number from 1"},

		{"policy twice", "policies:\n- {name: p, action: allow}\n- {name: p, action: deny}", `:3:10: policies[1].name: policy "p" is there twice`},
		{"no action", "policies: [{name: p}]", `policies[0]: "action" is missing`},
		{"action", "policies: [{name: p, action: permit}]", `policies[0].action: found "permit"; allowed: allow, deny`},
		{"from nobody", policy("from: []"), "policies[0].from: found an empty list; allowed: at least one entry, or no from"},
		{"to nowhere", policy("to: []"), "policies[0].to: found an empty list"},
		{"empty from entry", policy("from: [{}]"), "policies[0].from[0]: found an empty entry, which would match every source"},
		{"empty to entry", policy("to: [{}]"), "policies[0].to[0]: found an empty entry, which would match every destination"},
		{"identity and prefix", policy("from: [{identity: spiffe://x/y, identityPrefix: spiffe://x/}]"), "found both identity and identityPrefix in one entry"},
		{"prefix", policy("from: [{identityPrefix: 'spiffe://x/*'}]"), `from[0].identityPrefix: found "spiffe://x/*"; allowed: the beginning of a SPIFFE ID`},
		{"any false", policy("from: [{anyIdentity: false}]"), "from[0].anyIdentity: found the boolean false"},
		{"never by trust domain", policy("from: [{identity: spiffe://x/y, trustDomain: z}]"), "spiffe://x/y is not of trustDomain z, so the entry can never match"},
		{"never by namespace", policy("from: [{identity: spiffe://x/ns/a/sa/b, namespace: c}]"), "is not of namespace c"},
		{"host bits", policy("from: [{cidr: 10.0.0.1/8}]"), "did you mean 10.0.0.0/8 or 10.0.0.1/32?"},
		{"no ports", policy("to: [{ports: []}]"), "to[0].ports: found no port"},

		{"authorization default", "authorization: {audit: true}", `authorization: "default" is missing`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(testOptions(t, tt.yaml))
			if err == nil {
				t.Fatalf("accepted:\n%s", tt.yaml)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s\n%s", err, tt.want, tt.yaml)
			}
			if n := strings.Count(err.Error(), "\n"); n > 0 {
				t.Errorf("%d problems for one mistake:\n%v", n+1, err)
			}
		})
	}
}

func TestTwiceInSeveralFiles(t *testing.T) {
	one := `
nodes: [{name: b, address: 10.0.0.2}]
services: [{name: web, ports: [{port: 80}]}]
workloads: [{name: w, match: [{user: 1}]}]
policies: [{name: p, action: deny}]
authorization: {default: deny}
`
	_, err := Load(testOptions(t, one, one))
	for _, want := range []string{
		`b.yaml:2:16: nodes[0].name: node "b" is there twice`,
		`b.yaml:3:19: services[0].name: service "web" is there twice`,
		`b.yaml:4:20: workloads[0].name: workload "w" is there twice`,
		`b.yaml:5:19: policies[0].name: policy "p" is there twice`,
		`b.yaml:6:16: authorization: authorization is there twice, first at `,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
}

func TestNoTrustDomain(t *testing.T) {
	opts := testOptions(t, "workloads: [{name: w, match: [{user: 1}]}]")
	opts.Node.TrustDomain = spiffeid.TrustDomain{}
	if _, err := Load(opts); err == nil || !strings.Contains(err.Error(), "node.trustDomain is not set") {
		t.Error(err)
	}
}
