// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, text string, env ...string) *Config {
	t.Helper()
	c, err := Load(write(t, text), env, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefault(t *testing.T) {
	c, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	hostname, _ := os.Hostname()
	first, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	if c.Node.Name != first {
		t.Errorf("node.name = %q, want %q", c.Node.Name, first)
	}
	if c.Listeners.InboundHBONE != netip.MustParseAddrPort("[::]:15008") || c.Listeners.Outbound != 15001 ||
		c.Listeners.Metrics != netip.MustParseAddrPort("127.0.0.1:15020") {
		t.Errorf("listeners: %+v", c.Listeners)
	}
	if c.Defaults.Inbound != mesh.InboundStrict || c.Defaults.ConnectTimeout != 5*time.Second {
		t.Errorf("defaults: %+v", c.Defaults)
	}
	if c.Identity.Embedded.Dir != "/var/lib/meshproxy/ca" || c.Identity.Embedded.CATTL != 3650*day {
		t.Errorf("identity: %+v", c.Identity)
	}
	if c.Socket() != "/run/meshproxy/admin.sock" {
		t.Errorf("socket: %s", c.Socket())
	}
}

func TestFile(t *testing.T) {
	path := write(t, `
node:
  name: a
  address: ::ffff:10.0.0.1
  addresses: ["fd00::1"]
  locality: {region: r, zone: z}
  trustDomain: example.org
stateDir: /tmp/state
listeners:
  inboundHBONE: 10.0.0.1:16008
  metrics: off
  readiness: 16021
identity:
  provider: files
  files:
    workloads:
      - {identity: spiffe://example.org/ns/default/sa/web, cert: web.pem, key: /keys/web.key}
    bundle: roots.pem
sources: {static: {files: [mesh.yaml, /etc/mesh.yaml]}}
defaults: {idleTimeout: 0s, egress: registered-only}
dns: {upstreams: [1.1.1.1, "10.0.0.53:5353", "fd00::53"]}
drainTimeout: 1m30s
services: []
`)
	c, err := Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	if c.Node.Address != netip.MustParseAddr("10.0.0.1") || c.Node.TrustDomain.Name() != "example.org" ||
		c.Node.Locality != (mesh.Locality{Region: "r", Zone: "z"}) || len(c.Node.Addresses) != 1 {
		t.Errorf("node: %+v", c.Node)
	}
	if c.Listeners.InboundHBONE.String() != "10.0.0.1:16008" || c.Listeners.Metrics.IsValid() || c.Listeners.Readiness.Port() != 16021 {
		t.Errorf("listeners: %+v", c.Listeners)
	}
	leaf := c.Identity.Files.Workloads[0]
	if leaf.Identity.String() != "spiffe://example.org/ns/default/sa/web" || leaf.Cert != filepath.Join(dir, "web.pem") || leaf.Key != "/keys/web.key" ||
		c.Identity.Files.Bundle != filepath.Join(dir, "roots.pem") {
		t.Errorf("identity: %+v", c.Identity)
	}
	if diff := cmp.Diff([]string{path, filepath.Join(dir, "mesh.yaml"), "/etc/mesh.yaml"}, c.MeshFiles()); diff != "" {
		t.Error(diff)
	}
	var upstreams []string
	for _, u := range c.DNS.Upstreams {
		upstreams = append(upstreams, u.String())
	}
	if diff := cmp.Diff([]string{"1.1.1.1:53", "10.0.0.53:5353", "[fd00::53]:53"}, upstreams); diff != "" {
		t.Error(diff)
	}
	if c.Defaults.IdleTimeout != 0 || c.Defaults.Egress != mesh.EgressRegisteredOnly || c.DrainTimeout != 90*time.Second {
		t.Errorf("defaults: %+v, drain %v", c.Defaults, c.DrainTimeout)
	}
}

func TestLayers(t *testing.T) {
	path := write(t, "log: {level: warn, format: json, access: json}\ndns: {upstreams: [9.9.9.9]}\n")
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse([]string{"--log.level=error", "--dns.upstreams=1.1.1.1", "--dns.upstreams=8.8.8.8"}); err != nil {
		t.Fatal(err)
	}
	env := []string{
		"MESHPROXY_LOG_LEVEL=debug", "MESHPROXY_LOG_FORMAT=text", "MESHPROXY_NODE_TRUST_DOMAIN=example.org",
		"MESHPROXY_NODE_ADDRESSES=10.0.0.1, 10.0.0.2", "MESHPROXY_IDENTITY_EMBEDDED_LEAF_TTL=1h", "MESHPROXY_STATE_DIR=",
		"MESHPROXY_LISTENERS_INBOUND_HBONE=17008", "PATH=/bin",
		"MESHPROXY_CONFIG=x", "MESHPROXY_SOCKET=y", "MESHPROXY_PORT=tcp://10.0.0.1:80", "MESHPROXY_SERVICE_HOST=10.0.0.1",
	}
	c, err := Load(path, env, flags)
	if err != nil {
		t.Fatal(err)
	}
	if c.Log.Level != "error" || c.Log.Format != "text" || c.Log.Access != AccessJSON || c.Log.AccessEntries != EntriesProblems {
		t.Errorf("log: %+v", c.Log)
	}
	if len(c.DNS.Upstreams) != 2 || len(c.Node.Addresses) != 2 || c.Identity.Embedded.LeafTTL != time.Hour ||
		c.Node.TrustDomain.Name() != "example.org" || c.StateDir != "/var/lib/meshproxy" || c.Listeners.InboundHBONE.Port() != 17008 {
		t.Errorf("config: %+v", c)
	}
	for key, want := range map[string]string{
		"log.level": "--log.level", "log.format": "$MESHPROXY_LOG_FORMAT", "log.access": path + ":1",
		"log.accessEntries": "default", "dns.upstreams": "--dns.upstreams",
	} {
		if got := c.Origin(key); got != want {
			t.Errorf("origin of %s: %s, want %s", key, got, want)
		}
	}
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name, text string
		env, args  []string
		want       []string // FILE stands for the file's path
	}{
		{
			name: "all at once",
			text: "nod: {}\nlog:\n  level: loud\n  fromat: json\nlisteners: {outbound: 0, dns: 53.5}\n",
			want: []string{
				`FILE:1:1: unknown key "nod" (did you mean "node"?); allowed: node, cgroup, bpf, splicing, spliceHops, stateDir, runDir, netnsHelper, listeners, consul, identity, sources, defaults, dns, log, drainTimeout, upgradeTimeout, restartTimeout, nodes, services, policies, authorization, workloads`,
				`FILE:3:10: log.level: found "loud"; allowed: debug, info, warn, error`,
				`FILE:4:3: log: unknown key "fromat" (did you mean "format"?); allowed: level, format, access, accessEntries`,
				`FILE:5:23: listeners.outbound: found the number 0; allowed: a number from 1 to 65535`,
				`FILE:5:31: listeners.dns: found the number 53.5; allowed: a number from 1 to 65535`,
			},
		},
		{
			name: "duplicate key", text: "node:\n  name: a\n  name: b\n",
			want: []string{`FILE:3:3: node.name: the key is there twice, first in line 2`},
		},
		{
			name: "wrong types", text: "node: a\nlog: {level: [info], format: true}\nnode.name: x\nsources: {static: {files: mesh.yaml}}\n",
			want: []string{
				`FILE:1:7: node: found "a"; allowed: a mapping`,
				`FILE:2:14: log.level: found a list; allowed: debug, info, warn, error`,
				`FILE:2:30: log.format: found the boolean true; allowed: text, json`,
				`FILE:3:1: unknown key "node.name"; allowed: node, cgroup, bpf, splicing, spliceHops, stateDir, runDir, netnsHelper, listeners, consul, identity, sources, defaults, dns, log, drainTimeout, upgradeTimeout, restartTimeout, nodes, services, policies, authorization, workloads`,
				`FILE:4:27: sources.static.files: found "mesh.yaml"; allowed: a list`,
			},
		},
		{
			name: "values", text: "node: {address: 0.0.0.0, trustDomain: 'spiffe://x/y', name: A.b}\ndrainTimeout: 30\ndns: {virtualIPv4: 240.240.0.1/16, virtualIPv6: 10.0.0.0/8, domain: mesh.internal., upstreams: [1.1.1.1, x]}\nrunDir: run\nbpf: {instance: a/b, maxFlows: 5}\n",
			want: []string{
				`FILE:1:17: node.address: found "0.0.0.0"; allowed: an IP address that other nodes can reach`,
				`FILE:1:39: node.trustDomain: found "spiffe://x/y"; allowed: a SPIFFE trust domain such as example.org: lower case letters, digits, dots, dashes, underscores`,
				`FILE:1:61: node.name: found "A.b"; allowed: a DNS label: a-z, 0-9 and -, 63 at most, with - neither first nor last`,
				`FILE:2:15: drainTimeout: found "30"; allowed: a duration with a unit, from 0s to 24h`,
				`FILE:3:20: dns.virtualIPv4: found "240.240.0.1/16"; allowed: an IPv4 network of 8 to 28 bits, with no bits set beyond them`,
				`FILE:3:49: dns.virtualIPv6: found "10.0.0.0/8"; allowed: an IPv6 network of 16 to 112 bits, with no bits set beyond them`,
				`FILE:3:69: dns.domain: found "mesh.internal."; allowed: a DNS domain without a dot at its end, in lower case`,
				`FILE:3:106: dns.upstreams[1]: found "x"; allowed: an IP address, with a port if it isn't 53`,
				`FILE:4:9: runDir: found "run"; allowed: an absolute path of 80 bytes at most`,
				`FILE:5:17: bpf.instance: found "a/b"; allowed: letters, digits, dashes and underscores, 64 at most`,
				`FILE:5:32: bpf.maxFlows: found the number 5; allowed: a number from 1024 to 16777216`,
			},
		},
		{
			name: "services of Consul", text: "node: {name: a, address: 10.0.0.1}\nidentity: {provider: consul}\nsources:\n  consul:\n    services:\n      - {name: web, upstreams: [{listen: \"127.0.0.1:9191\", service: db, subset: v1}]}\n      - {name: shop, register: {port: 0, checks: [{tcp: a, http: b}, {name: none}, {grpc: c, interval: 1ms}]}}\n",
			want: []string{
				`FILE:6:81: sources.consul.services[0].upstreams[0].subset: found subset; allowed: no subset: a subset is chosen by a service-resolver, peers and partitions are behind mesh gateways`,
				`FILE:7:39: sources.consul.services[1].register.port: found the number 0; allowed: a number from 1 to 65535`,
				`FILE:7:51: sources.consul.services[1].register.checks[0]: found 2 kinds of checks in one entry; allowed: exactly one of tcp: host:port, http: URL, grpc: host:port`,
				`FILE:7:70: sources.consul.services[1].register.checks[1]: found 0 kinds of checks in one entry; allowed: exactly one of tcp: host:port, http: URL, grpc: host:port`,
				`FILE:7:104: sources.consul.services[1].register.checks[2].interval: found "1ms"; allowed: a duration with a unit, such as 5s, from 1s to 1h0m0s`,
			},
		},
		{
			name: "variables and flags", text: "log: {level: loud}\n",
			env:  []string{"MESHPROXY_LOG_LEVEL=louder", "MESHPROXY_LOG_LEVLE=info", "MESHPROXY_LISTENERS_DNS=53x"},
			args: []string{"--log.level=loudest", "--dns.upstreams=1.1.1.1,2"},
			want: []string{
				`FILE:1:14: log.level: found "loud"; allowed: debug, info, warn, error`,
				`$MESHPROXY_LOG_LEVLE: unknown variable; allowed: the variables of config show --defaults, such as MESHPROXY_LOG_LEVEL`,
				`$MESHPROXY_LISTENERS_DNS: listeners.dns: found "53x"; allowed: a number from 1 to 65535`,
				`$MESHPROXY_LOG_LEVEL: log.level: found "louder"; allowed: debug, info, warn, error`,
				`--dns.upstreams: dns.upstreams: found "2"; allowed: an IP address, with a port if it isn't 53`,
				`--log.level: log.level: found "loudest"; allowed: debug, info, warn, error`,
			},
		},
		{
			name: "combinations",
			text: "node:\n  address: 240.240.1.1\n  locality: {zone: z}\nlisteners: {outbound: 15008, metrics: off}\nidentity:\n  files: {dir: x}\n  embedded: {leafTTL: 48h, caTTL: 24h}\ndns: {upstreams: ['127.0.0.1:15053']}\n",
			want: []string{
				`FILE:2: node.address: 240.240.1.1 lies among the virtual IPs; allowed: an address outside dns.virtualIPv4 and dns.virtualIPv6`,
				`FILE:3: node.locality.zone: a zone without its region; allowed: node.locality.region with it`,
				`FILE: listeners.inboundHBONE: port 15008 is that of listeners.outbound, too; allowed: a port of its own for each listener`,
				`FILE:6: identity.files.dir: set, and identity.provider is embedded; allowed: identity.provider: files, or nothing here`,
				`FILE:7: identity.embedded.leafTTL: leaves of 2d would outlive their root of 24h; allowed: at most identity.embedded.caTTL`,
				`FILE:8: dns.upstreams: 127.0.0.1:15053 is the node's own (listeners.dns); allowed: resolvers other than this node`,
			},
		},
		{
			name: "default identity", text: "identity: {default: spiffe://other.example/web}\n",
			want: []string{`FILE:1: identity.default: spiffe://other.example/web, and the CA is for mesh.internal; allowed: an identity of node.trustDomain`},
		},
		{
			name: "default identity without a path", text: "identity: {default: 'spiffe://mesh.internal'}\n",
			want: []string{`FILE:1:21: identity.default: found "spiffe://mesh.internal"; allowed: a workload such as web or team/web, or a SPIFFE ID with a path`},
		},
		{
			name: "default workload", text: "identity: {default: a/b/c}\n",
			want: []string{`FILE:1:21: identity.default: found "a/b/c"; allowed: a workload such as web or team/web, or a SPIFFE ID with a path`},
		},
		{
			name: "Consul's agent",
			text: "consul:\n  address: localhost\n  token: a\n",
			want: []string{`FILE:2:12: consul.address: found "localhost"; allowed: a host with a port, such as 127.0.0.1:8500 or https://localhost:8501, or unix:///path`},
		},
		{
			name: "Consul's agent, together",
			text: "consul:\n  token: a\n  tokenFile: b\n  certFile: c\nidentity: {provider: consul, files: {bundle: x}}\n",
			want: []string{
				`FILE:4: consul.certFile: one without the other; allowed: consul.certFile and consul.keyFile together`,
				`FILE:4: consul.certFile: set, and consul.address is 127.0.0.1:8500; allowed: an address with https:// in consul.address`,
				`FILE:5: identity.files.bundle: set, and identity.provider is consul; allowed: identity.provider: files, or nothing here`,
			},
		},
		{
			name: "a service left out",
			text: "identity: {provider: consul}\nsources:\n  consul:\n    enabled: true\n    services:\n      - {name: a, enabled: false, register: {port: 1}}\n      - {name: b, enabled: no}\n      - {name: c, enabled: false, port: 20001}\n",
			want: []string{
				`FILE:7:28: sources.consul.services[1].enabled: found "no"; allowed: true or false`,
				`FILE:8:41: sources.consul.services[2].port: found port beside enabled: false; allowed: no port: the node has nothing to do with the service`,
			},
		},
		{
			name: "namespaces of Consul's services",
			text: "consul: {namespace: team}\nidentity: {provider: consul}\nsources:\n  consul:\n    enabled: true\n    services: [{name: a}, {name: a, namespace: team}, {name: b, namespace: default}]\n",
			want: []string{
				`FILE:6: sources.consul.services: service a is there twice: consul.namespace is team; allowed: each service once`,
				`FILE:6: sources.consul.services: service b in namespace default; allowed: services of namespace team, which consul.namespace says`,
			},
		},
		{
			name: "leaf cache", text: "identity:\n  leafCache: plain\n",
			want: []string{`FILE:2:14: identity.leafCache: found "plain"; allowed: off, auto, host, tpm2, host+tpm2`},
		},
		{
			name: "leaf cache of a CA of one's own", text: "identity:\n  leafCache: tpm2\n",
			want: []string{`FILE:2: identity.leafCache: tpm2, and identity.provider embedded has its keys on disk anyway; allowed: identity.provider: consul with it, or off`},
		},
		{
			name: "files without leaves", text: "identity: {provider: files}\n",
			want: []string{`FILE:1: identity.provider: files, and there are none; allowed: identity.files.dir or identity.files.workloads with it`},
		},
		{
			name: "leaves", text: "identity:\n  provider: files\n  files:\n    workloads:\n      - {identity: x, cert: a, key: b}\n      - {identity: spiffe://x/y, cert: a}\n      - {identity: spiffe://x/y, cert: a, kye: b}\n",
			want: []string{
				`FILE:5:9: identity.files.workloads[0]: identity "x": scheme is missing or invalid; allowed: identity, cert and key`,
				`FILE:6:9: identity.files.workloads[1]: "key" is missing`,
				`FILE:7:9: identity.files.workloads[2]: "key" is missing`,
				`FILE:7:43: identity.files.workloads[2]: unknown key "kye"; allowed: identity, cert, key`,
			},
		},
		{
			name: "leaves without a bundle", text: "identity:\n  provider: files\n  files:\n    workloads:\n      - {identity: spiffe://x/y, cert: a, key: b}\n      - {identity: spiffe://x/y, cert: a, key: b}\n",
			want: []string{
				`FILE:5: identity.files.workloads: leaves without a trust bundle to verify peers; allowed: identity.files.bundle beside it`,
				`FILE:5: identity.files.workloads: spiffe://x/y is named twice; allowed: each identity once`,
			},
		},
		{
			name: "the same file twice", text: "sources: {static: {files: [a.yaml, ./a.yaml]}}\n",
			want: []string{`FILE:1: sources.static.files: DIR/a.yaml is named twice; allowed: each file once, without the configuration itself`},
		},
		{name: "no YAML", text: "a: b: c\n", want: []string{`FILE: not YAML: mapping values are not allowed in this context`}},
		{name: "empty", text: "", want: []string{`FILE: the file is empty`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, test.text)
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			AddFlags(flags)
			if err := flags.Parse(test.args); err != nil {
				t.Fatal(err)
			}
			c, err := Load(path, test.env, flags)
			if c != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("Load = %v, %v", c, err)
			}
			var problems yamlconf.Problems
			if !errors.As(err, &problems) || len(problems) != len(test.want) {
				t.Errorf("%d problems, want %d", len(problems), len(test.want))
			}
			got := strings.NewReplacer(path, "FILE", filepath.Dir(path), "DIR").Replace(err.Error())
			if diff := cmp.Diff(test.want, strings.Split(got, "\n")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load("/nonexistent/node.yaml", nil, nil)
	if !errors.Is(err, ErrInvalid) || err.Error() != "/nonexistent/node.yaml: read configuration: no such file or directory" {
		t.Errorf("Load = %v", err)
	}
}

func TestParse(t *testing.T) {
	if _, err := Parse("x.yaml", []byte("log: {level: x}")); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "x.yaml:1:14: ") {
		t.Errorf("Parse = %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("node: {name: a}\nlisteners: {outbound: 1}\n"))
	f.Add([]byte("identity: {provider: files, files: {workloads: [{identity: spiffe://x/y, cert: a, key: b}]}}"))
	f.Add([]byte("a: &a {<<: *a}\n"))
	f.Add([]byte("dns: {upstreams: [1.1.1.1, ~, {}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("x.yaml", text)
		if (c == nil) == (err == nil) {
			t.Fatalf("Parse = %v, %v", c, err)
		}
		if err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("not ErrInvalid: %v", err)
		}
	})
}

func TestDefaultIdentity(t *testing.T) {
	for text, want := range map[string]DefaultIdentity{
		"web":      {Workload: mesh.Name{Namespace: "default", Name: "web"}},
		"team/web": {Workload: mesh.Name{Namespace: "team", Name: "web"}},
		"spiffe://mesh.internal/ns/default/sa/web": {ID: spiffeid.RequireFromString("spiffe://mesh.internal/ns/default/sa/web")},
	} {
		c := load(t, "identity: {default: '"+text+"'}\n")
		if c.Identity.Default != want {
			t.Errorf("%q: %+v, want %+v", text, c.Identity.Default, want)
		}
		if shown := formatDefaultIdentity(c.Identity.Default); shown != text {
			t.Errorf("%q is shown as %q", text, shown)
		}
	}
}
