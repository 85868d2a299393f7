// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"context"
	"net/http"
	"net/url"
)

type parametersKey struct{}

// With returns a context whose requests carry parameters beside those that
// api.QueryOptions stands for: api.Raw takes no others.
func With(ctx context.Context, parameters url.Values) context.Context {
	return context.WithValue(ctx, parametersKey{}, parameters)
}

// addParameters adds those of the request's context.
func addParameters(r *http.Request) {
	more, _ := r.Context().Value(parametersKey{}).(url.Values)
	if len(more) == 0 {
		return
	}
	all := r.URL.Query()
	for name, values := range more {
		all[name] = values
	}
	r.URL.RawQuery = all.Encode()
}
