// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
)

// TestPartialAnswers: what the ACLs leave out of an answer is said until an answer
// is whole, and no answer in between, which is as the one before, takes it back.
func TestPartialAnswers(t *testing.T) {
	const rule = `node_prefix "" { policy = "read" }`
	r := newRun(New(Options{Logger: slog.New(slog.DiscardHandler)}), nil)
	said := func() bool {
		return slices.ContainsFunc(r.view().Warnings, func(w string) bool {
			return strings.HasPrefix(w, queryNames) && strings.Contains(w, rule)
		})
	}
	for _, step := range []struct {
		what string
		do   func()
		want bool
	}{
		{"something is left out", func() { r.lacks(queryNames, rule, true) }, true},
		{"the same answer", func() { r.worked(queryNames) }, true},
		{"a whole one", func() { r.lacks(queryNames, rule, false) }, false},
		{"left out again", func() { r.lacks(queryNames, rule, true) }, true},
		{"not asked any more", func() { r.forget(queryNames) }, false},
	} {
		step.do()
		if got := said(); got != step.want {
			t.Errorf("%s: said %t, want %t", step.what, got, step.want)
		}
	}
}
