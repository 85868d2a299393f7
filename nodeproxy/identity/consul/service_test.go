// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestParseService(t *testing.T) {
	for path, want := range map[string]service{
		"/ns/default/dc/dc1/svc/web":        {"default", "default", "dc1", "web"},
		"/ns/team/dc/dc2/svc/web":           {"default", "team", "dc2", "web"},
		"/ap/part/ns/team/dc/dc2/svc/web":   {"part", "team", "dc2", "web"},
		"/ns/default/sa/web":                {},
		"/ns/default/dc/dc1/svc/web/more":   {},
		"/agent/client/dc/dc1/id/web":       {},
		"/gateway/mesh/dc/dc1":              {},
		"/xx/part/ns/team/dc/dc2/svc/web":   {},
		"/ns/default/dc/dc1/svc":            {},
		"/ap/part/gateway/mesh/dc/dc1/ns/x": {},
	} {
		id := spiffeid.RequireFromString("spiffe://x.consul" + path)
		if got, err := parseService(id); got != want || (err == nil) != (want != service{}) {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	for _, tt := range []struct {
		err         error
		first, last time.Duration // the windows
	}{
		{errors.New("connection refused"), time.Second, 30 * time.Second},
		{api.StatusError{Code: 500, Body: "Rate limit reached, try again later"}, time.Second, 30 * time.Second},
		{api.StatusError{Code: 403, Body: "Permission denied"}, 10 * time.Second, 30 * time.Second},
	} {
		var b backoff
		if d := b.next(tt.err); d < tt.first/4 || d > tt.first {
			t.Errorf("%v: first after %v", tt.err, d)
		}
		for range 100 {
			if d := b.next(tt.err); d < tt.first/4 || d > tt.last {
				t.Errorf("%v: then after %v", tt.err, d)
			}
		}
		if d := b.next(tt.err); d < tt.last/4 {
			t.Errorf("%v: at last after %v", tt.err, d)
		}
		if b.next(nil); b.failures != 0 {
			t.Error("failures are not forgotten")
		}
	}
}
