// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// TestRoundTrip: what Settings shows, Load reads as the same configuration.
func TestRoundTrip(t *testing.T) {
	before := load(t, `
node: {name: a, address: 10.0.0.1, addresses: ["fd00::1"], locality: {region: r, zone: z}}
listeners: {inboundHBONE: "[::1]:16008", metrics: off, readiness: 16021}
identity: {provider: files, files: {bundle: /b, workloads: [{identity: spiffe://x/y, cert: /c, key: /k}]}}
dns: {upstreams: [1.1.1.1, "10.0.0.53:5353"]}
drainTimeout: 90m
`)
	l := make(layer)
	tree := l.tree()
	for _, s := range before.Settings() {
		if s.Value == "" {
			continue
		}
		at := tree
		segments := strings.Split(s.Key, ".")
		for _, segment := range segments[:len(segments)-1] {
			if at[segment] == nil {
				at[segment] = map[string]any{}
			}
			at = at[segment].(map[string]any)
		}
		at[segments[len(segments)-1]] = s.Value
	}
	text, err := yaml.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	after := load(t, string(text))
	if changes := Diff(before, after); len(changes) > 0 {
		t.Errorf("changes: %+v in\n%s", changes, text)
	}
}

func TestDiff(t *testing.T) {
	before := load(t, "node: {name: a}\nlog: {level: info}\ndns: {upstreams: [1.1.1.1]}\n")
	after := load(t, "node: {name: b}\nlog: {level: debug}\ndns: {upstreams: [1.1.1.1, 8.8.8.8]}\nservices: []\n")
	var got []string
	for _, c := range Diff(before, after) {
		if c.Key == "sources.static.files" {
			c.Old, c.New = "x", "y" // paths of this run
		}
		got = append(got, fmt.Sprintf("%s: %v -> %v, restart %v", c.Key, c.Old, c.New, c.Restart))
	}
	want := []string{
		"node.name: a -> b, restart true",
		"dns.upstreams: [1.1.1.1] -> [1.1.1.1 8.8.8.8], restart false",
		"log.level: info -> debug, restart false",
		"sources.static.files: x -> y, restart false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if same := Diff(before, before); len(same) != 0 {
		t.Errorf("with itself: %v", same)
	}
}

// TestTable holds the table to what the rest of the package expects of it.
func TestTable(t *testing.T) {
	docs, err := Reference()
	if err != nil {
		t.Fatal(err)
	}
	keys, variables := map[string]bool{}, map[string]bool{}
	for _, d := range docs {
		if keys[d.Key] || variables[d.Variable] && d.Variable != "" {
			t.Errorf("%s twice", d.Key)
		}
		keys[d.Key], variables[d.Variable] = true, true
		if !strings.HasSuffix(d.Doc, ".") || d.Accepts == "" {
			t.Errorf("%s: doc %q, accepts %q", d.Key, d.Doc, d.Accepts)
		}
		for _, section := range meshSections {
			if d.Key == section || strings.HasPrefix(d.Key, section+".") {
				t.Errorf("%s is a section of the mesh", d.Key)
			}
		}
	}
}

func TestDurations(t *testing.T) {
	for text, d := range map[string]time.Duration{
		"0s": 0, "5s": 5 * time.Second, "1m": time.Minute, "1m30s": 90 * time.Second, "1h": time.Hour,
		"24h": day, "36h": 36 * time.Hour, "3650d": 3650 * day, "250ms": 250 * time.Millisecond, "1h0m5s": time.Hour + 5*time.Second,
	} {
		if got := formatDuration(d); got != text {
			t.Errorf("format %v = %q, want %q", d, got, text)
		}
		if got, err := parseDuration(text); err != nil || got != d {
			t.Errorf("parse %q = %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "5", "d", "-1d", "1.5d", "99999d", "5 s"} {
		if got, err := parseDuration(text); err == nil {
			t.Errorf("parse %q = %v", text, got)
		}
	}
}

func TestEnvNames(t *testing.T) {
	for key, want := range map[string]string{
		"node.trustDomain":        "MESHPROXY_NODE_TRUST_DOMAIN",
		"listeners.inboundHBONE":  "MESHPROXY_LISTENERS_INBOUND_HBONE",
		"dns.virtualIPv4":         "MESHPROXY_DNS_VIRTUAL_IPV4",
		"identity.embedded.caTTL": "MESHPROXY_IDENTITY_EMBEDDED_CA_TTL",
		"drainTimeout":            "MESHPROXY_DRAIN_TIMEOUT",
		"defaults.onProxyDown":    "MESHPROXY_DEFAULTS_ON_PROXY_DOWN",
		"bpf.fs":                  "MESHPROXY_BPF_FS",
	} {
		if got := envName(key); got != want {
			t.Errorf("envName(%s) = %s, want %s", key, got, want)
		}
	}
}

func TestExamples(t *testing.T) {
	for _, name := range []string{"minimal", "node-a", "node-b", "full"} {
		t.Run(name, func(t *testing.T) {
			c, err := Load("../../configs/"+name+".yaml", nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if warnings, err := c.CheckMesh(); err != nil || len(warnings) > 0 {
				t.Error(warnings, err)
			}
		})
	}
}

// TestFullExample: the full example has every key, in the table's order.
func TestFullExample(t *testing.T) {
	text, err := os.ReadFile("../../configs/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	var walk func(prefix string, n *yaml.Node)
	walk = func(prefix string, n *yaml.Node) {
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := prefix + n.Content[i].Value
			if find(name) != nil {
				got = append(got, name)
			} else if len(below(name+".")) > 0 {
				walk(name+".", n.Content[i+1])
			}
		}
	}
	walk("", document.Content[0])
	for i := range table {
		want = append(want, table[i].name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInForce(t *testing.T) {
	started, err := Parse("old.yaml", []byte("node: {name: a}\nlisteners: {metrics: off}\ndrainTimeout: 1s\n"))
	if err != nil {
		t.Fatal(err)
	}
	read, err := Parse("new.yaml", []byte("node: {name: b}\nlisteners: {inboundHBONE: 16008}\ndrainTimeout: 2s\n"))
	if err != nil {
		t.Fatal(err)
	}
	inForce := read.InForce(started)
	if inForce.Node.Name != "a" || !reflect.DeepEqual(inForce.Listeners, started.Listeners) || inForce.DrainTimeout != 2*time.Second {
		t.Errorf("in force: %+v", inForce)
	}
	if o := inForce.Origin("node.name"); !strings.HasPrefix(o, "old.yaml:1") {
		t.Errorf("node.name is said to be from %s", o)
	}
	if o := inForce.Origin("listeners.inboundHBONE"); o != "default" {
		t.Errorf("listeners.inboundHBONE is said to be from %s", o)
	}
	if read.Node.Name != "b" || len(Diff(read, read)) > 0 {
		t.Error("InForce changed what was read")
	}
}

// TestSecret: a token is never shown, and its change is seen.
func TestSecret(t *testing.T) {
	a, b := load(t, "consul: {token: 8d5f8c8c-aaaa}\n"), load(t, "consul: {token: 8d5f8c8c-bbbb}\n")
	shown := fmt.Sprint(a.Settings(), Diff(a, b))
	if strings.Contains(shown, "8d5f8c8c") {
		t.Errorf("the token is shown: %s", shown)
	}
	if changes := Diff(a, b); len(changes) != 1 || changes[0].Key != "consul.token" {
		t.Errorf("changes: %v", changes)
	}
}

// TestTrustDomainOfConsul: it is learned, unless somebody insists.
func TestTrustDomainOfConsul(t *testing.T) {
	for text, want := range map[string]string{
		"node: {name: a}":              "mesh.internal",
		"identity: {provider: consul}": "",
		"{node: {trustDomain: x.consul}, identity: {provider: consul}}": "x.consul",
	} {
		if got := load(t, text).Node.TrustDomain.Name(); got != want {
			t.Errorf("%s: trust domain %q, want %q", text, got, want)
		}
	}
}

// TestConsulLeftOut: what is left out is shown so, and reads as it is shown.
func TestConsulLeftOut(t *testing.T) {
	c := load(t, "{identity: {provider: consul}, sources: {consul: {enabled: true, services: [{name: a, enabled: false}, {name: b, enabled: true}]}}}")
	list := c.ConsulOptions().Services
	if !list[0].LeftOut || list[1].LeftOut {
		t.Errorf("services %+v", list)
	}
	if shown := fmt.Sprint(shownConsulService(&list[0]), shownConsulService(&list[1])); shown != "map[enabled:false name:a] map[name:b]" {
		t.Errorf("shown as %s", shown)
	}
}

// TestConsulNamespaces: what names no namespace is shown so, and is about that of
// consul.namespace, whatever it is.
func TestConsulNamespaces(t *testing.T) {
	const services = "identity: {provider: consul}\nsources:\n  consul:\n    enabled: true\n    services:\n" +
		"      - {name: a, upstreams: [{listen: \"127.0.0.1:1\", service: x}, {listen: \"127.0.0.1:2\", service: x, namespace: other}]}\n"
	for _, head := range []string{"", "consul: {namespace: team}\n"} {
		c := load(t, head+services)
		s := c.ConsulOptions().Services[0]
		if s.Name.Namespace != "" || s.Upstreams[0].Service.Namespace != "" || s.Upstreams[1].Service.Namespace != "other" {
			t.Errorf("%s: service %+v", head, s)
		}
		shown := shownConsulService(&s)
		ups, ok := shown["upstreams"].([]any)
		if !ok || shown["namespace"] != nil || ups[0].(map[string]any)["namespace"] != nil || ups[1].(map[string]any)["namespace"] != "other" {
			t.Errorf("%s: shown as %v", head, shown)
		}
	}
}
