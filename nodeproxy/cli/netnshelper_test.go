// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

// TestEnrolment: whose namespaces the helper opens, whichever source the
// configuration is about.
func TestEnrolment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meshproxy.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const consul = `
node: {address: 192.0.2.10}
identity: {provider: consul}
sources:
  consul:
    enabled: true
    services:
      - {name: web, match: [{unit: web.service}]}
      - {name: api, match: [{user: "1234"}]}
      - {name: any}
`
	const static = "node: {address: 192.0.2.10, trustDomain: mesh.internal}\nworkloads: [{name: shop, match: [{unit: shop.service}]}]\n"
	now := time.Unix(1000, 0)
	e := &enrolment{load: config.Origins{Path: file}, now: func() time.Time { return now }}
	allowed := func(path string, uid uint32) bool {
		now = now.Add(2 * time.Second)
		return e.allow(path, uid) == nil
	}
	for _, step := range []struct {
		name, text      string
		web, user, shop bool
	}{
		{"of a file", static, false, false, true},
		{"of Consul", consul, true, true, false},
		{"not valid: what was stays", "nonsense: 1\n", true, true, false},
		{"of a file again", static, false, false, true},
	} {
		t.Run(step.name, func(t *testing.T) {
			write(step.text)
			for what, c := range map[string]struct{ got, want bool }{
				"web.service":  {allowed("/system.slice/web.service", 0), step.web},
				"user 1234":    {allowed("/system.slice/other.service", 1234), step.user},
				"shop.service": {allowed("/system.slice/shop.service", 0), step.shop},
				"any.service":  {allowed("/system.slice/any.service", 0), false},
			} {
				if c.got != c.want {
					t.Errorf("%s: allowed is %t", what, c.got)
				}
			}
		})
	}
}
