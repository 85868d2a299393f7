// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of api.QueryMeta that matter here.
const (
	indexHeader    = "X-Consul-Index"
	filteredHeader = "X-Consul-Results-Filtered-By-ACLs"
)

type unlessKey struct{}

// unless is what is known.
type unless struct {
	index uint64
	after time.Time
}

// Unless returns a context whose requests are answered by null, which is nothing
// to decode, if the answer has this index and ACLs left nothing out of it: who
// asks a thousand times whether something changed mostly hears that it did not.
func Unless(ctx context.Context, index uint64) context.Context {
	return UnlessAfter(ctx, index, time.Time{})
}

// UnlessAfter is Unless for answers that come after some time: an answer with the
// index that it was to wait for is news of some kind if it comes early.
func UnlessAfter(ctx context.Context, index uint64, after time.Time) context.Context {
	return context.WithValue(ctx, unlessKey{}, unless{index, after})
}

// spare replaces the body of an answer that the request's context says is known.
// It is read all the same, since the connection is used again.
func spare(ctx context.Context, r *http.Response) error {
	known, ok := ctx.Value(unlessKey{}).(unless)
	if !ok || r.StatusCode != http.StatusOK || r.Header.Get(indexHeader) != strconv.FormatUint(known.index, 10) || r.Header.Get(filteredHeader) == "true" {
		return nil
	}
	if time.Now().Before(known.after) {
		return nil
	}
	_, err := io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader("null")), -1
	return err
}
