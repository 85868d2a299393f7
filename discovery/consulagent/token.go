// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// header carries the token. Whatever CONSUL_HTTP_TOKEN says is not sent: the
// node's configuration is all in one place.
const header = "X-Consul-Token"

// authorizing sends the token with each request.
type authorizing struct {
	next http.RoundTripper
	path string // of the token's file; empty: token is fixed

	mu    sync.Mutex
	token string
	stamp stamp
}

// stamp tells whether a file has changed.
type stamp struct {
	modified time.Time
	size     int64
}

func (a *authorizing) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := a.current()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context()) // a RoundTripper may not change its request
	addParameters(r)
	r.Header.Del(header)
	if token != "" {
		r.Header.Set(header, token)
	}
	answer, err := a.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if err := spare(r.Context(), answer); err != nil {
		return nil, err
	}
	return answer, nil
}

// current reads the file if it has changed. One that is gone, as during its
// replacement, leaves the last token in force.
func (a *authorizing) current() (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.path == "" {
		return a.token, nil
	}
	info, err := os.Stat(a.path)
	if err == nil {
		now := stamp{info.ModTime(), info.Size()}
		if now == a.stamp {
			return a.token, nil
		}
		var text []byte
		if text, err = os.ReadFile(a.path); err == nil {
			a.token, a.stamp = strings.TrimSpace(string(text)), now
			return a.token, nil
		}
	}
	if a.token != "" {
		return a.token, nil
	}
	return "", fmt.Errorf("read Consul's token: %w", err)
}
