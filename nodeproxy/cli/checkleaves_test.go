// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"testing"

	"github.com/meshproxy/meshproxy/sockmap/probe"
)

// TestCheckLeafCache: the real systemd-creds is found, and missed.
func TestCheckLeafCache(t *testing.T) {
	here := t.TempDir() // without any program
	for _, tt := range []struct {
		name, cache, path string
		says              []string
	}{
		{"there", "auto", "", []string{"leaf cache", "systemd-creds of systemd 2", "identity.leafCache auto"}},
		{"missing", "host", here, []string{"warn", "leaf cache", "systemd-creds is not installed; systemd has it since version 250", "No leaves are kept on disk", "A node can run here, with"}},
		{"off", `"off"`, here, []string{"A node can run here."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.path != "" {
				t.Setenv("PATH", tt.path)
			}
			found := func(s *Surroundings) {
				s.Check = func(context.Context, probe.Options) (probe.Report, error) {
					return probe.Report{Findings: []probe.Finding{{Name: "kernel", Status: probe.StatusOK, Required: true}}}, nil
				}
			}
			// Whoever answers at the agent's address, or nobody, is another finding.
			config := "consul: {address: \"127.0.0.1:1\"}\nidentity: {provider: consul, leafCache: " + tt.cache + "}\n"
			if tt.cache == `"off"` {
				config = "node: {name: a}\n"
			}
			command(t, found, "check", "--config", write(t, "node.yaml", config)).expect(t, ExitOK, tt.says...)
		})
	}
}
