// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestConsulDefaultDeny: ACLs deny by default, and two nodes have the token of
// docs/consul.md. They and the Envoy of a third machine talk both ways, as intentions
// allow it.
func TestConsulDefaultDeny(t *testing.T) {
	t.Parallel()
	l := newConsulLabAs(t, consul.Options{ACLDefaultDeny: true}, "c")
	a, b, c := l.net.Host("a"), l.net.Host("b"), l.net.Host("c")
	token := l.documentedToken()
	l.register("a", "web", 7001)
	l.register("b", "api", 7002)
	l.serve(a, "web", "-name", "web", "-tcp", "10.77.0.1:7001")
	l.serve(b, "api", "-name", "api", "-tcp", "10.77.0.2:7002")
	l.serve(c, "legacy", "-name", "legacy", "-tcp", "10.77.0.3:8001")
	for host, services := range map[string]string{
		"a": `[{name: web, upstreams: [{listen: "127.0.0.1:9001", service: api}, {listen: "127.0.0.1:9002", service: legacy}]}]`,
		"b": `[{name: api, upstreams: [{listen: "127.0.0.1:9001", service: web}]}]`,
	} {
		o := consulNode
		o.Extra = fmt.Sprintf("consul: {tokenFile: %q}\nsources: {consul: {enabled: true, services: %s}}\n", token, services)
		l.startAs(host, o)
	}
	l.sidecar("c", "legacy", 8001, envoyPublic, upstream("web", envoyToWeb))

	lanes := []struct {
		from, to string
		host     string
		at       string
	}{
		{"web", "api", "a", "127.0.0.1:9001"},
		{"api", "web", "b", "127.0.0.1:9001"},
		{"web", "legacy", "a", "127.0.0.1:9002"},
		{"legacy", "web", "c", l.loopback(envoyToWeb).String()},
	}
	for _, k := range lanes {
		if d := l.dial(l.net.Host(k.host), k.from, "-address", k.at, "-send", "hello"); d.OK {
			t.Errorf("%s to %s: answered without an intention", k.from, k.to)
		}
	}
	for _, k := range lanes {
		l.server.Intend(t, k.from, k.to, consulapi.IntentionActionAllow)
	}
	for _, k := range lanes {
		l.reaches(l.net.Host(k.host), k.from, k.at, k.to)
	}
	for host, n := range l.nodes {
		if strings.Contains(n.Stderr().String()+n.Stdout().String(), "missing_rule") {
			t.Errorf("node %s lacks a right", host)
		}
	}
	l.server.Intend(t, "api", "web", consulapi.IntentionActionDeny)
	l.eventually("api denied", func() error {
		if d := l.dial(b, "api", "-address", "127.0.0.1:9001", "-send", "hello"); d.OK {
			return errors.New("it gets an answer")
		}
		return nil
	})
	l.reaches(a, "web", "127.0.0.1:9001", "api")
}

// documentedToken is a file with a token that has the policy of docs/consul.md,
// which is for web and api.
func (l *consulLab) documentedToken() (path string) {
	l.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "consul.md"))
	must(l.T, err)
	policy := regexp.MustCompile("(?s)```hcl\n(.*?meshproxy-vm1.hcl.*?)```").FindSubmatch(text)
	if policy == nil {
		l.Fatal("docs/consul.md has no policy")
	}
	path = filepath.Join(l.net.Dir(), "consul.token")
	must(l.T, os.WriteFile(path, []byte(l.server.Token(l, string(policy[1])).SecretID+"\n"), 0o600))
	return path
}
