// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

// TestCheckConsul: an agent that is away or hangs is a warning, after a bounded
// time; a node that doesn't use Consul isn't told of it.
func TestCheckConsul(t *testing.T) {
	t.Parallel()
	hung, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, hung.Close()) })
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	must(t, gone.Close())
	fine := []probe.Finding{{Name: "kernel", Status: probe.StatusOK, Required: true}}
	for _, tt := range []struct {
		name, config string
		says         []string
	}{
		{"away", fmt.Sprintf("consul: {address: %q}\nidentity: {provider: consul}\n", gone.Addr()), []string{
			"warn", "Consul agent", gone.Addr().String() + ": dial tcp", "connection refused", "goes on with what it last knew", "A node can run here, with",
		}},
		{"hangs", fmt.Sprintf("consul: {address: %q}\nidentity: {provider: consul}\nsources: {consul: {enabled: true}}\n", hung.Addr()), []string{
			"warn", hung.Addr().String() + ": does not answer within 3s", "A node can run here, with",
		}},
		{"no token file", "consul: {tokenFile: /nonexistent}\nidentity: {provider: consul}\n", []string{
			"fail", "read Consul's token: stat /nonexistent", "doesn't start before this is mended",
		}},
		{"not used", "node: {name: a}\n", []string{"A node can run here."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			found := func(s *Surroundings) {
				s.Check = func(context.Context, probe.Options) (probe.Report, error) {
					return probe.Report{Findings: slices.Clone(fine)}, nil
				}
			}
			command(t, found, "check", "--config", write(t, "node.yaml", tt.config)).expect(t, ExitOK, tt.says...)
		})
	}
}

func TestDescribeConsul(t *testing.T) {
	const at = "127.0.0.1:8500"
	whole := consulagent.Standing{Node: "n1", Datacenter: "dc1", Version: "1.22.0", ACLs: true, Token: "vm1", Services: []string{"web"}}
	lacking, without := whole, whole
	lacking.Lacking = []string{`service "web" { policy = "write" }`, `node_prefix "" { policy = "read" }`}
	without.ACLs, without.Token = false, ""
	for _, tt := range []struct {
		name     string
		standing consulagent.Standing
		err      error
		want     []string // status and detail
	}{
		{"all is well", whole, nil, []string{
			"ok 127.0.0.1:8500: n1 in datacenter dc1, Consul 1.22.0, 1 services", "ok vm1 has the rights that are needed",
		}},
		{"rights", lacking, nil, []string{
			"ok 127.0.0.1:8500: n1 in datacenter dc1, Consul 1.22.0, 1 services",
			`warn vm1 lacks service "web" { policy = "write" }, node_prefix "" { policy = "read" }`,
		}},
		{"no ACLs", without, nil, []string{
			"ok 127.0.0.1:8500: n1 in datacenter dc1, Consul 1.22.0, 1 services", "ok none is needed: Consul has no ACLs",
		}},
		{"unknown token", consulagent.Standing{}, consulagent.ErrToken, []string{"ok 127.0.0.1:8500", "warn Consul does not know the token"}},
		{"no leader", consulagent.Standing{}, fmt.Errorf("ask: %w", api.StatusError{Code: 500, Body: "No cluster leader"}), []string{
			"warn 127.0.0.1:8500: 500: No cluster leader",
		}},
		{"anything", consulagent.Standing{}, errors.New(`Get "http://x/v1": broken`), []string{"warn 127.0.0.1:8500: broken"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, f := range describeConsul(at, &tt.standing, tt.err) {
				got = append(got, string(f.Status)+" "+f.Detail)
				if (f.Status == probe.StatusOK) != (f.Consequence == "") || f.Required {
					t.Errorf("finding %+v", f)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
