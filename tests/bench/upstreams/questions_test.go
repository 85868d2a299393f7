// SPDX-License-Identifier: Apache-2.0

package upstreams

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

func TestCountAnswering(t *testing.T) {
	for profile, want := range map[string]int{
		"goroutine profile: total 9\n5 @ 0x1 0x2\n#\t0x1\tnet/http.(*conn).serve+0x1\tserver.go:1\n\n": 0,
		"goroutine profile: total 9\n3 @ 0x1\n#\t0x1\tx/agent.(*HTTPHandlers).wrap.func1+0x1\ta.go:1\n#\t0x2\tx/agent.(*HTTPHandlers).wrap.func1.2+0x1\ta.go:1\n\n" +
			"2 @ 0x1\n#\t0x1\tx/agent.(*HTTPHandlers).wrap.func1+0x1\ta.go:1\n": 5,
	} {
		if got, err := countAnswering(strings.NewReader(profile)); err != nil || got != want {
			t.Errorf("%d, %v of %q", got, err, profile)
		}
	}
	if _, err := countAnswering(strings.NewReader("many @ 0x1\n")); err == nil {
		t.Error("counted many")
	}
}

// TestQuestions: of a real agent's, each that is open is counted, whatever
// answers it.
func TestQuestions(t *testing.T) {
	s := consul.Start(t, consul.Options{Dev: true, HCL: debug})
	expect := func(want int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := testnet.Until(ctx, func() error {
			got, err := questions(ctx, new(net.Dialer).DialContext, s.HTTPAddr)
			if err == nil && got != want {
				err = fmt.Errorf("%d questions, want %d", got, want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	never := (&api.QueryOptions{WaitIndex: 1 << 40, WaitTime: time.Minute}).WithContext(ctx)
	for _, ask := range []func() error{
		func() error { _, _, err := s.Client().Health().Service("web", "", true, never); return err },
		func() error { _, _, err := s.Client().Agent().ConnectCARoots(never); return err },
		func() error { _, _, err := s.Client().DiscoveryChain().Get("web", nil, never); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- ask() }()
		t.Cleanup(func() {
			if err := <-done; err == nil {
				t.Error("a question was answered: it proves nothing")
			}
		})
	}
	t.Cleanup(cancel)
	expect(3)
}
