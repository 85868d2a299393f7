// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"time"

	"github.com/hashicorp/consul/api"
)

// Test is what Start needs of a testing.TB, so that the demo, which is part of
// the product's binary, doesn't bring package testing there.
type Test interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	TempDir() string
	Failed() bool
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// startWithin is how long an agent may take to serve, on a busy machine too.
const startWithin = 3 * time.Minute

// Start starts an agent that ends with the test; its log is shown when the test
// has failed. Building the binary, where it is missing, takes minutes.
func Start(t Test, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if _, err := Binary(t.Context()); err != nil {
		t.Fatalf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	s, err := Launch(ctx, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { finish(t, s.process) }) // of a restart, too: evaluated then
	return s
}

// finish ends a process at the end of its test.
func finish(t Test, p process) {
	if t.Failed() { // before it says that it ends, at length
		t.Logf("%s says last:\n%s", p.Log(), tail(p, 8000))
	}
	if err := end(p); err != nil {
		t.Logf("%v", err)
	}
}

// Client is a client with all rights.
func (s *Server) Client() *api.Client {
	c, err := s.client()
	if err != nil {
		panic(err) // the address is one that this package has chosen
	}
	return c
}
