// SPDX-License-Identifier: Apache-2.0

package mesh

import "time"

// Routing is what a backend says about the requests to a service: the first
// route that matches one decides where it goes. It does not concern
// connections that are carried as they are; those go to the service's
// Endpoints.
type Routing struct {
	// Routes are in order. The last one matches every request.
	Routes []Route `json:"routes,omitempty"`
	// Targets are what the routes' splits refer to.
	Targets []RouteTarget `json:"targets,omitempty"`
}

// Route is what becomes of the requests that it matches.
type Route struct {
	Match RouteMatch `json:"match,omitzero"`
	// Splits share the requests by weight; there is at least one.
	Splits []RouteSplit `json:"splits,omitempty"`
	// PrefixRewrite replaces what the match found at the beginning of the
	// path; empty leaves it.
	PrefixRewrite string `json:"prefixRewrite,omitempty"`
	// Timeout bounds a request with its retries, IdleTimeout its silence: 0
	// means the target's or the node's default, less than 0 no bound.
	Timeout     time.Duration `json:"timeoutNanos,omitempty"`
	IdleTimeout time.Duration `json:"idleTimeoutNanos,omitempty"`
	Retry       *RouteRetry   `json:"retry,omitempty"`
	HeaderEdits
}

// RouteMatch says which requests a route is about. All that is set must match;
// the zero value matches every request.
type RouteMatch struct {
	// At most one of the paths is set. Prefix is one of the text, not of
	// segments; Regex matches the whole path.
	PathExact  string `json:"pathExact,omitempty"`
	PathPrefix string `json:"pathPrefix,omitempty"`
	PathRegex  string `json:"pathRegex,omitempty"`
	// IgnoreCase is about the path.
	IgnoreCase bool         `json:"ignoreCase,omitempty"`
	Headers    []FieldMatch `json:"headers,omitempty"`
	Query      []FieldMatch `json:"query,omitempty"`
	// Methods: any of them; none means every method.
	Methods []string `json:"methods,omitempty"`
}

// FieldMatch is about one header or query parameter. One of the texts is set,
// or none and Present.
type FieldMatch struct {
	Name       string `json:"name"`
	Present    bool   `json:"present,omitempty"`
	Exact      string `json:"exact,omitempty"`
	Prefix     string `json:"prefix,omitempty"`
	Suffix     string `json:"suffix,omitempty"`
	Contains   string `json:"contains,omitempty"`
	Regex      string `json:"regex,omitempty"` // of the whole value
	Invert     bool   `json:"invert,omitempty"`
	IgnoreCase bool   `json:"ignoreCase,omitempty"`
}

// RouteSplit is one share of a route's requests.
type RouteSplit struct {
	// Weight is in hundredths of a percent.
	Weight uint32 `json:"weight,omitempty"`
	// Target is an index into Routing.Targets.
	Target int `json:"target"`
	HeaderEdits
}

// HeaderEdits change headers on their way.
type HeaderEdits struct {
	Request  *HeaderEdit `json:"requestHeaders,omitempty"`
	Response *HeaderEdit `json:"responseHeaders,omitempty"`
}

// HeaderEdit changes the headers of one direction: Add appends, Set
// overwrites.
type HeaderEdit struct {
	Add    map[string]string `json:"add,omitempty"`
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// RouteRetry says when a request is tried again.
type RouteRetry struct {
	Attempts         uint32   `json:"attempts,omitempty"`
	OnConnectFailure bool     `json:"onConnectFailure,omitempty"`
	On               []string `json:"on,omitempty"` // conditions, by Envoy's names
	OnStatus         []uint32 `json:"onStatus,omitempty"`
}

// RouteTarget is a set of endpoints that requests are sent to.
type RouteTarget struct {
	// Name is the backend's name for it, for people.
	Name           string        `json:"name"`
	ConnectTimeout time.Duration `json:"connectTimeoutNanos,omitempty"`
	RequestTimeout time.Duration `json:"requestTimeoutNanos,omitempty"` // as Route.Timeout
	// Balance may name policies that choose by request: "ring_hash" and
	// "maglev", with Hash.
	Balance   Balance     `json:"balance,omitempty"`
	Hash      []HashField `json:"hash,omitempty"`
	Endpoints []*Endpoint `json:"endpoints,omitempty"`
}

// HashField is a part of what a request's endpoint is chosen by.
type HashField struct {
	// Field is "header", "cookie", "query_parameter" or "source_ip"; Name is
	// that of the first three.
	Field string `json:"field"`
	Name  string `json:"name,omitempty"`
	// CookieTTL and CookiePath are for a cookie that the proxy sets itself;
	// CookieTTL 0 is one of the session.
	CookieTTL  time.Duration `json:"cookieTTLNanos,omitempty"`
	CookiePath string        `json:"cookiePath,omitempty"`
	// Terminal ends the list where this field is present.
	Terminal bool `json:"terminal,omitempty"`
}
