// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	engine "github.com/meshproxy/meshproxy/nodeproxy/policy"
	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// decisionSeed makes the intentions of TestDecisions the same in each run.
const decisionSeed = 20251121

// TestDecisions compares, for intentions made at random, what the node decides
// with what Consul itself says.
func TestDecisions(t *testing.T) {
	for _, deny := range []bool{false, true} {
		t.Run(fmt.Sprintf("default deny %t", deny), func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", decisionSeed)
			s := peer.Start(t, peer.Options{Dev: true, Node: "n1", ACLDefaultDeny: deny})
			for i, name := range decisionServices {
				s.Register(t, &api.AgentServiceRegistration{ID: name, Name: name, Port: 8080 + i})
			}
			f := start(t, optionsFor(t, s, s.ManagementToken))
			random := rand.New(rand.NewPCG(decisionSeed, 0))
			answers := make(map[bool]int)
			for range 12 {
				written := intendAtRandom(t, s, random)
				u := f.until("the policies of "+strings.Join(written, ", "), func(u discovery.Update, err error) bool {
					return err == nil && slices.Equal(actions(u), expected(written, deny))
				})
				for answer, n := range compare(t, s, u, strings.Join(written, ", ")) {
					answers[answer] += n
				}
			}
			if answers[true] == 0 || answers[false] == 0 {
				t.Errorf("answers of Consul's: %v, want some of each", answers)
			}
		})
	}
}

var decisionServices = []string{"api", "web"}

// intendAtRandom replaces all intentions, and says what they are now: texts such
// as "a->web allow".
func intendAtRandom(t *testing.T, s *peer.Server, random *rand.Rand) (written []string) {
	t.Helper()
	for _, to := range append([]string{"*"}, decisionServices...) {
		entry := &api.ServiceIntentionsConfigEntry{Kind: api.ServiceIntentions, Name: to}
		for _, from := range []string{"a", "b", "*"} {
			action := []api.IntentionAction{"", api.IntentionActionAllow, api.IntentionActionDeny}[random.IntN(3)]
			if action == "" {
				continue
			}
			entry.Sources = append(entry.Sources, &api.SourceIntention{Name: from, Action: action})
			written = append(written, fmt.Sprintf("%s->%s %s", from, to, action))
		}
		if entry.Sources == nil {
			s.Delete(t, api.ServiceIntentions, to)
		} else {
			s.Write(t, entry)
		}
	}
	return written
}

// expected are the policies for each service, with their actions; one for any
// service is one for each.
func expected(written []string, deny bool) (list []string) {
	standard := mesh.ActionAllow
	if deny {
		standard = mesh.ActionDeny
	}
	for _, to := range decisionServices {
		list = append(list, fmt.Sprintf("default->%s %s", to, standard))
		for _, text := range written {
			if strings.Contains(text, "->"+to+" ") || strings.Contains(text, "->* ") {
				list = append(list, strings.Replace(text, "->* ", "->"+to+" ", 1))
			}
		}
	}
	slices.Sort(list)
	return list
}

// actions are the policies that the node has.
func actions(u discovery.Update) (list []string) {
	for _, p := range u.Policies {
		list = append(list, strings.TrimPrefix(p.Name.Name, "intention ")+" "+string(p.Action))
	}
	slices.Sort(list)
	return list
}

// compare asks both about each pair, and counts Consul's answers.
func compare(t *testing.T, s *peer.Server, u discovery.Update, written string) map[bool]int {
	t.Helper()
	answers := make(map[bool]int)
	decisions := engine.Compile(mesh.PolicyDefaults{Default: mesh.ActionAllow}, u.Policies)
	for i, to := range decisionServices {
		id := workload(u, to).Identity
		for _, from := range []string{"a", "b", "c"} {
			want, _, err := s.Client().Connect().IntentionCheck(
				&api.IntentionCheck{Source: from, Destination: to}, (&api.QueryOptions{}).WithContext(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			name := mesh.Name{Name: to}.Canonical()
			got := decisions.Decide(engine.Request{
				Identity: spiffeid.RequireFromSegments(id.TrustDomain(), "ns", "default", "dc", "dc1", "svc", from),
				Source:   netip.MustParseAddrPort("10.1.2.3:40000"),
				Workload: name, Services: []mesh.Name{name}, Port: uint16(8080 + i),
			}).Allowed
			if got != want {
				t.Errorf("%s to %s: allowed %t, and Consul says %t, of %s", from, to, got, want, written)
			}
			answers[want]++
		}
	}
	return answers
}
