// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"
)

// Standing is what an agent says about itself and the token.
type Standing struct {
	// Node and Datacenter are those of the agent; empty if the token may not
	// know.
	Node, Datacenter, Version string
	// ACLs: Consul has them. Otherwise a token is good for nothing.
	ACLs bool
	// Token is its description, or accessor.
	Token string
	// Services are those registered with the agent that the token may read, and
	// that are not left out.
	Services []string
	// Lacking are the rules that the token would need, as in a policy.
	Lacking []string
}

// Needs say what a token is to be good for.
type Needs struct {
	// Mesh: to follow services and intentions.
	Mesh bool
	// Register: to keep rows for the agent's services.
	Register bool
	// Services are further ones, beside those registered with the agent.
	Services []string
	// LeftOut are those that the node leaves alone, beside what their metadata
	// says.
	LeftOut []string
}

// metaEnabled is the key of a service's metadata by which it is left out of the mesh.
const metaEnabled = "meshproxy-enabled"

// LeftOut reports whether a registration's metadata leaves the service out of the
// mesh. With an error it does not.
func LeftOut(meta map[string]string) (bool, error) {
	text, said := meta[metaEnabled]
	enabled, err := strconv.ParseBool(text)
	switch {
	case !said:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("its metadata has %s = %q, which is neither true nor false", metaEnabled, text)
	}
	return !enabled, nil
}

// ErrToken is returned when Consul doesn't know the token.
var ErrToken = errors.New("Consul does not know the token") //lint:ignore ST1005 Consul is a name.

// Look asks an agent about itself and the token. Nothing is changed. The error is
// about the agent, or ErrToken; what was learned before it is valid.
func (a *Agent) Look(ctx context.Context, needs Needs) (s Standing, err error) {
	q := (&api.QueryOptions{}).WithContext(ctx)
	token, _, err := a.ACL().TokenReadSelf(q)
	var status api.StatusError
	switch {
	case errors.As(err, &status) && status.Code == http.StatusUnauthorized: // ACL support disabled
	case Refused(err):
		return s, ErrToken
	case err != nil:
		return s, err
	default:
		s.ACLs, s.Token = true, token.Description
		if s.Token == "" {
			s.Token = token.AccessorID
		}
	}
	if err := a.lookAtSelf(ctx, &s); err != nil {
		return s, err
	}
	all, err := a.Agent().ServicesWithFilterOpts(`Kind == ""`, q)
	if err != nil && !Refused(err) {
		return s, err
	}
	for _, one := range all {
		out, _ := LeftOut(one.Meta)
		if one.Connect != nil && one.Connect.Native || out || slices.Contains(needs.LeftOut, one.Service) {
			continue
		}
		needs.Services = append(needs.Services, one.Service)
		s.Services = append(s.Services, one.Service)
	}
	if !s.ACLs || !needs.Mesh {
		return s, nil
	}
	return s, a.lookAtRights(ctx, &s, needs)
}

func (a *Agent) lookAtSelf(ctx context.Context, s *Standing) error {
	var self struct {
		Config struct{ NodeName, Datacenter, Version string }
	}
	_, err := a.Raw().Query("/v1/agent/self", &self, (&api.QueryOptions{}).WithContext(ctx))
	if rule := Rule(err); rule != "" {
		s.Lacking = append(s.Lacking, rule)
		return nil
	}
	s.Node, s.Datacenter, s.Version = self.Config.NodeName, self.Config.Datacenter, self.Config.Version
	return err
}

// right is what Consul is asked about, and what it answers.
type right struct {
	Resource, Access string
	Segment          string
	Allow            bool   `json:",omitempty"`
	rule             string // that grants it
}

// mostRights may be asked about at once (ACLAuthorize in agent/acl_endpoint.go).
const mostRights = 64

// lookAtRights asks which of the rights that are needed the token has, the way
// Consul's own interface does, since nothing else tells without trying.
func (a *Agent) lookAtRights(ctx context.Context, s *Standing, needs Needs) error {
	var lacking []string
	for some := range slices.Chunk(rightsFor(needs), mostRights) {
		answer, err := a.authorize(ctx, some)
		if err != nil {
			return err
		}
		for i := range answer {
			if !answer[i].Allow {
				lacking = append(lacking, some[i].rule)
			}
		}
	}
	s.Lacking = append(s.Lacking, lacking...)
	return nil
}

func rightsFor(needs Needs) []right {
	rights := []right{
		{Resource: "service", Access: "read", rule: `service_prefix "" { policy = "read" }`},
		{Resource: "node", Access: "read", rule: `node_prefix "" { policy = "read" }`},
	}
	names := make(map[string]bool)
	for _, n := range needs.Services {
		names[n] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		write := []string{name}
		if needs.Register {
			write = append(write, name+"-sidecar-proxy")
		}
		for _, n := range write {
			rights = append(rights, right{Resource: "service", Access: "write", Segment: n, rule: fmt.Sprintf(`service %q { policy = "write" }`, n)})
		}
		rights = append(rights, right{Resource: "intention", Access: "read", Segment: name, rule: fmt.Sprintf(`service %q { intentions = "read" }`, name)})
	}
	return rights
}

// authorize returns as many answers as there are questions, in their order.
func (a *Agent) authorize(ctx context.Context, rights []right) ([]right, error) {
	text, err := json.Marshal(rights)
	if err != nil {
		return nil, fmt.Errorf("ask about rights: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base+"/v1/internal/acl/authorize", bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("ask about rights: %w", err)
	}
	resp, err := a.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask about rights: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("ask about rights: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask about rights: %w", api.StatusError{Code: resp.StatusCode, Body: string(body)})
	}
	var answer []right
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("ask about rights: %w", err)
	}
	if len(answer) != len(rights) {
		return nil, fmt.Errorf("ask about rights: %d answers to %d questions", len(answer), len(rights))
	}
	return answer, nil
}
