// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"time"

	"github.com/hashicorp/consul/api"
)

// Registration is a service that the node itself registers with the agent.
type Registration struct {
	ID      string // empty: the service's name
	Address string // empty: the agent's
	Port    uint16
	Tags    []string
	Meta    map[string]string
	// Passing and Warning are weights; 0 means 1.
	Passing, Warning int
	Checks           []Check
}

// Check is one of a Registration; one of TCP, HTTP and GRPC is set.
type Check struct {
	Name            string
	TCP, HTTP, GRPC string
	Interval        time.Duration
	Timeout         time.Duration
	// DeregisterAfter removes a service that was critical for so long; 0:
	// never.
	DeregisterAfter time.Duration
}

// metaConfig holds a digest of what a service was registered from: the agent
// does not show its checks.
const metaConfig = "meshproxy-config"

func (g *Registration) row(s *Service, node, namespace string) *api.AgentServiceRegistration {
	row := &api.AgentServiceRegistration{
		ID: cmp.Or(g.ID, s.Name.Name), Name: s.Name.Name, Namespace: namespace,
		Port: int(g.Port), Address: g.Address, Tags: g.Tags, Meta: maps.Clone(g.Meta),
		Weights: &api.AgentWeights{Passing: cmp.Or(g.Passing, 1), Warning: cmp.Or(g.Warning, 1)},
	}
	for _, c := range g.Checks {
		check := &api.AgentServiceCheck{
			Name: c.Name, TCP: c.TCP, HTTP: c.HTTP, GRPC: c.GRPC,
			Interval: c.Interval.String(), Timeout: c.Timeout.String(),
		}
		if c.DeregisterAfter > 0 {
			check.DeregisterCriticalServiceAfter = c.DeregisterAfter.String()
		}
		row.Checks = append(row.Checks, check)
	}
	if row.Meta == nil {
		row.Meta = make(map[string]string)
	}
	text, err := json.Marshal(row.Checks)
	if err != nil {
		panic(err) // texts and numbers
	}
	sum := sha256.Sum256(text)
	row.Meta[metaNode], row.Meta[metaConfig] = node, hex.EncodeToString(sum[:8])
	return row
}
