// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

// Node answers for the node. Its methods may be called from any goroutine, and
// must not wait for the data path. An *api.Error chooses the answer's kind,
// any other error is an internal one.
type Node interface {
	Health
	Status(ctx context.Context) (api.Status, error)
	Services(ctx context.Context) ([]api.Service, error)
	Workloads(ctx context.Context) ([]api.Workload, error)
	ExplainPolicy(ctx context.Context, q api.PolicyQuery) (api.PolicyExplanation, error)
	// Config has no secrets in it.
	Config(ctx context.Context) (api.Config, error)
	CA(ctx context.Context) (api.CA, error)
	// SetBypass lasts until it is set again, or until the node restarts.
	SetBypass(ctx context.Context, b api.Bypass) error
	// SetSplice lasts as long, and answers with what is in force then.
	SetSplice(ctx context.Context, c api.SpliceControl) (api.Splice, error)
	// Reload changes nothing when it returns an error.
	Reload(ctx context.Context) (api.Reload, error)
	// Upgrade gives way to a new process of what lies where the executable
	// did. Nothing has changed when it returns an error.
	Upgrade(ctx context.Context) (api.Upgrade, error)
	// Drain begins a drain and returns at once; a second call only reports.
	Drain(ctx context.Context) (api.Drain, error)
}

// ErrServesNothing: capture is in force, and what it captures is refused.
var ErrServesNothing = errors.New("nothing can be served yet")

// Health says what probes ask for.
type Health interface {
	// Ready is nil when the node can serve: the listeners are open, capture
	// is in force, sources and the identity provider have said what they know.
	// The error wraps ErrServesNothing where those last are all that is missing.
	Ready() error
	// Unserved is what a node that is ready can't serve yet, a line for each.
	Unserved() []string
	// Live is nil as long as a restart would not help: the loops turn.
	Live() error
}
