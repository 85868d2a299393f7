// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// Source is a discovery backend.
type Source interface {
	// Name is the source's name in configuration, logs and metrics. It does
	// not change and is unique among the sources of a Merger.
	Name() string
	// Run sends updates until ctx is done, and then returns nil or ctx's
	// error. It returns another error when it cannot go on; it is then called
	// again after a while, and what it sent last stays in force. It does not
	// close updates, and has no goroutine left when it returns.
	Run(ctx context.Context, updates chan<- Update) error
}

// Update is the complete view of a source. Once sent, nothing that it points
// to may change. A source that sends the same pointers again for what did not
// change saves the merger work; one that does not is correct all the same.
type Update struct {
	// Services, Workloads and Policies are best sorted by name. Their Source
	// is filled in by the merger.
	Services  []*mesh.Service
	Workloads []*mesh.Workload
	Policies  []*mesh.Policy
	// Defaults are the policy defaults, if the source decides them. The
	// first source that does so wins.
	Defaults *mesh.PolicyDefaults
	// Warnings are oddities in the backend's data that the source could live
	// with.
	Warnings []string
	// Stale says why a part of the backend cannot be read at the moment: that
	// part is as it was, the rest is new.
	Stale error
	// Err says that the backend cannot be read at the moment. The other
	// fields are ignored, and the last update without Err stays in force.
	Err error
}
