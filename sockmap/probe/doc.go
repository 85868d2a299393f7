// SPDX-License-Identifier: Apache-2.0

// Package probe finds out what the kernel, the machine and the process's
// privileges allow: what `meshproxy check` reports.
//
// It tries things rather than looking at versions, since distributions carry
// features back and leave some out. It changes nothing: what it loads or binds
// is gone when Run returns. It must not know how findings are shown.
package probe

import "slices"

// Status is the outcome of one check.
type Status string

// The outcomes.
const (
	// StatusOK: as it should be.
	StatusOK Status = "ok"
	// StatusWarn: meshproxy works, with the Consequence.
	StatusWarn Status = "warn"
	// StatusFail: meshproxy does not work.
	StatusFail Status = "fail"
	// StatusUnknown: the check itself came to nothing, mostly for lack of
	// privileges. Count it as not there: a feature that is taken for absent
	// costs something, one that is taken for present breaks connections.
	StatusUnknown Status = "unknown"
)

// Finding is the outcome of one check.
type Finding struct {
	// Name is stable: "cgroup2", "program cgroup/connect4", "port 15001/tcp".
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Required says that meshproxy can't do without.
	Required bool `json:"required"`
	// Detail is what was found.
	Detail string `json:"detail,omitempty"`
	// Consequence says what does not work, and what works nevertheless. Empty
	// when all is well.
	Consequence string `json:"consequence,omitempty"`
	// MinKernel is the first version of mainline Linux that has it, where one
	// is known.
	MinKernel string `json:"minKernel,omitempty"`
}

// Report is what Run found, in the order of the checks.
type Report struct {
	Findings []Finding `json:"findings"`
}

// Usable reports whether all that is required has been found to be there.
func (r Report) Usable() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Required && (f.Status == StatusFail || f.Status == StatusUnknown)
	})
}

// Find returns the finding of that name.
func (r Report) Find(name string) (Finding, bool) {
	i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.Name == name })
	if i < 0 {
		return Finding{}, false
	}
	return r.Findings[i], true
}
