// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	consulapi "github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestConsulDefaultDeny: ACLs deny by default, and two nodes have the token of
// docs/consul.md. They and an Envoy talk both ways, as intentions allow it.
func TestConsulDefaultDeny(t *testing.T) {
	t.Parallel()
	l := newConsulLabAs(t, consul.Options{ACLDefaultDeny: true})
	a, b := l.net.Host("a"), l.net.Host("b")
	token := l.documentedToken()
	l.register("a", "web", 7001)
	l.register("b", "api", 7002)
	l.serve(a, "web", "-name", "web", "-tcp", "10.77.0.1:7001")
	l.serve(b, "api", "-name", "api", "-tcp", "10.77.0.2:7002")
	l.serve(b, "legacy", "-name", "legacy", "-tcp", "10.77.0.2:8001")
	for host, services := range map[string]string{
		"a": `[{name: web, upstreams: [{listen: "127.0.0.1:9001", service: api}, {listen: "127.0.0.1:9002", service: legacy}]}]`,
		"b": `[{name: api, upstreams: [{listen: "127.0.0.1:9001", service: web}]}]`,
	} {
		o := consulNode
		o.Extra = fmt.Sprintf("consul: {tokenFile: %q}\nsources: {consul: {enabled: true, services: %s}}\n", token, services)
		l.startAs(host, o)
	}
	l.sidecar("b", "legacy", 8001, envoyPublic, upstream("web", envoyToWeb))

	lanes := []struct {
		from, to string
		host     string
		at       string
	}{
		{"web", "api", "a", "127.0.0.1:9001"},
		{"api", "web", "b", "127.0.0.1:9001"},
		{"web", "legacy", "a", "127.0.0.1:9002"},
		{"legacy", "web", "b", l.loopback(envoyToWeb).String()},
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
	for host := range l.nodes {
		l.eventually("no warning of "+host, func() error {
			for _, s := range l.status(host).Sources {
				if len(s.Warnings) > 0 || s.Error != "" {
					return fmt.Errorf("source %+v", s)
				}
			}
			return nil
		})
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
