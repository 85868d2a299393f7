// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"
)

// dialTimeout bounds a connect to the agent, which is on this machine.
const dialTimeout = 5 * time.Second

// Agent is a client of the agent.
type Agent struct {
	*api.Client
	address   string
	base      string // of URLs
	http      *http.Client
	transport *http.Transport

	// For Glance.
	settings Settings
	endpoint endpoint
	token    *authorizing
	tls      *tls.Config // nil: none
}

// New makes a client that has at most so many connections to the agent, each
// with one request at a time unless the agent speaks HTTP/2, as it does with
// TLS. An agent allows 200 per client by default (limits.http_max_conns_per_client).
// It connects when it is asked for something.
func New(s Settings, connections int) (*Agent, error) {
	s.Address = cmp.Or(s.Address, DefaultAddress)
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("reach Consul: %w", err)
	}
	e, err := parseAddress(s.Address)
	if err != nil {
		return nil, fmt.Errorf("reach Consul: %w", err)
	}
	t := &http.Transport{
		DialContext:     e.dial,
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
		ForceAttemptHTTP2:     true,
		// The agent is on this machine: compression costs both more than it saves.
		DisableCompression: true,
	}
	if e.scheme == schemeHTTPS {
		t.TLSClientConfig, err = api.SetupTLSConfig(&api.TLSConfig{
			Address: cmp.Or(s.ServerName, e.host), CAFile: s.CAFile, CertFile: s.CertFile, KeyFile: s.KeyFile,
		})
		if err != nil {
			return nil, fmt.Errorf("reach Consul: %w", err)
		}
	}
	var forOne *tls.Config // connection, without HTTP/2
	if t.TLSClientConfig != nil {
		forOne = t.TLSClientConfig.Clone()
	}
	token := &authorizing{next: t, token: s.Token, path: s.TokenFile}
	if _, err := token.current(); err != nil {
		return nil, err
	}
	do := &http.Client{Transport: token}
	client, err := api.NewClient(&api.Config{
		Address: e.host, Scheme: e.scheme,
		Datacenter: s.Datacenter, Namespace: s.Namespace, Partition: s.Partition,
		HttpClient: do,
	})
	if err != nil {
		return nil, fmt.Errorf("reach Consul: %w", err)
	}
	return &Agent{
		Client: client, address: s.Address, base: e.scheme + "://" + e.host, http: do, transport: t,
		settings: s, endpoint: e, token: token, tls: forOne,
	}, nil
}

// Address is where the agent is, for people.
func (a *Agent) Address() string { return a.address }

// Close closes connections that are idle. Requests end with their contexts.
func (a *Agent) Close() { a.transport.CloseIdleConnections() }

func (e endpoint) dial(ctx context.Context, _, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	if e.socket != "" {
		return d.DialContext(ctx, "unix", e.socket)
	}
	return d.DialContext(ctx, "tcp", address)
}
