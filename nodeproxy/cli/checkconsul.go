// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

// consulTime bounds what an agent may take to answer all: the unit looks at it
// before each start, and Consul may be away then.
const consulTime = 3 * time.Second

// checkConsul looks at Consul where the node is to use it: whether its agent
// answers, knows the token, and which rules that lacks. Nothing of it keeps a node
// from running.
func checkConsul(ctx context.Context, conf *config.Config) []probe.Finding {
	if conf.Identity.Provider != config.ProviderConsul && !conf.Sources.Consul.Enabled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, consulTime)
	defer cancel()
	agent, err := consulagent.New(conf.Consul, 1)
	if err != nil {
		return []probe.Finding{{
			Name: "Consul agent", Status: probe.StatusFail, Detail: err.Error(),
			Consequence: "The node doesn't start before this is mended.",
		}}
	}
	defer agent.Close()
	src := &conf.Sources.Consul
	needs := consulagent.Needs{Mesh: src.Enabled, Register: src.Register}
	for i := range src.Services {
		name := src.Services[i].Name.Name
		if src.Services[i].LeftOut {
			needs.LeftOut = append(needs.LeftOut, name)
			continue
		}
		needs.Services = append(needs.Services, name)
	}
	s, err := agent.Look(ctx, needs)
	return describeConsul(agent.Address(), &s, err)
}

func describeConsul(address string, s *consulagent.Standing, err error) []probe.Finding {
	answers := probe.Finding{Name: "Consul agent", Status: probe.StatusOK, Detail: address}
	if s.Node != "" {
		answers.Detail += fmt.Sprintf(": %s in datacenter %s, Consul %s, %d services", s.Node, s.Datacenter, s.Version, len(s.Services))
	}
	token := probe.Finding{Name: "Consul token", Status: probe.StatusOK, Detail: s.Token}
	switch {
	case errors.Is(err, consulagent.ErrToken):
		token.Status, token.Detail = probe.StatusWarn, err.Error()
		token.Consequence = "The node learns nothing from Consul and gets no leaves; what it knew stays in force. Look at consul.tokenFile and consul.token."
		return []probe.Finding{answers, token}
	case err != nil:
		answers.Status = probe.StatusWarn
		answers.Detail = address + ": " + consulProblem(err)
		answers.Consequence = "The node goes on with what it last knew from Consul, and serves nothing where it knew nothing, until the agent is there."
		return []probe.Finding{answers}
	case !s.ACLs:
		token.Detail = "none is needed: Consul has no ACLs"
	case len(s.Lacking) > 0:
		token.Status = probe.StatusWarn
		token.Detail += " lacks " + strings.Join(s.Lacking, ", ")
		token.Consequence = "What the token may not read isn't in the mesh, what it may not write has no row and no leaf. Add these rules to its policy."
	default:
		token.Detail += " has the rights that are needed"
	}
	return []probe.Finding{answers, token}
}

// consulProblem is the last part of an error, which says what is the matter, and
// not what was asked.
func consulProblem(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("does not answer within %v", consulTime)
	}
	var status api.StatusError
	if errors.As(err, &status) {
		line, _, _ := strings.Cut(strings.TrimSpace(status.Body), "\n")
		return fmt.Sprintf("%d: %s", status.Code, line)
	}
	text := err.Error()
	if _, cause, ok := strings.Cut(text, `": `); ok {
		text = cause
	}
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
