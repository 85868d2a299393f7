// SPDX-License-Identifier: Apache-2.0

package upstreams

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// answering is what an agent of Consul runs for each question of its HTTP
// interface, pprof's own save: agent/http.go, HTTPHandlers.wrap.
const answering = "agent.(*HTTPHandlers).wrap.func"

// debug makes an agent show its goroutines.
const debug = "enable_debug = true\n"

// dialer is net.Dialer.DialContext, or that of a namespace.
type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// questions asks an agent how many questions it has and has not answered. Its
// metrics don't tell: their rpc.queries_blocking leaves out what is answered
// from a cache or a stream.
func questions(ctx context.Context, dial dialer, agent netip.AddrPort) (int, error) {
	ask, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/goroutine?debug=1", agent), http.NoBody)
	if err != nil {
		return 0, err
	}
	answer, err := (&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}).Do(ask)
	if err != nil {
		return 0, fmt.Errorf("read the agent's goroutines: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("read the agent's goroutines: %s", answer.Status)
	}
	count, err := countAnswering(answer.Body)
	if err != nil {
		return 0, fmt.Errorf("read the agent's goroutines: %w", err)
	}
	return count, nil
}

// countAnswering reads a goroutine profile of runtime/pprof: paragraphs of a line
// "number @ addresses" and one for each function.
func countAnswering(profile io.Reader) (count int, err error) {
	in := bufio.NewScanner(profile)
	in.Buffer(nil, 1<<20)
	same := 0
	for in.Scan() {
		if number, _, is := strings.Cut(in.Text(), " @ "); is {
			if same, err = strconv.Atoi(number); err != nil {
				return 0, fmt.Errorf("line %q: %w", in.Text(), err)
			}
		} else if strings.Contains(in.Text(), answering) {
			count += same
			same = 0 // counted
		}
	}
	return count, in.Err()
}
