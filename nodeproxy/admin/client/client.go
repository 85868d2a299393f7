// SPDX-License-Identifier: Apache-2.0

// Package client asks a running node over its admin socket.
//
// It owns what can go wrong on the way there: a node that doesn't run, a
// socket that isn't ours to use. It must not know how answers are shown.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

var (
	// ErrNotRunning: there is no socket, or nobody answers on it.
	ErrNotRunning = errors.New("the node is not running")
	// ErrNotPermitted: the socket is there and may not be used.
	ErrNotPermitted = errors.New("not permitted")
)

const (
	dialTimeout = 5 * time.Second
	// answerTimeout is more than the server's own.
	answerTimeout = 60 * time.Second
	// maxAnswer bounds what is read: 10,000 connections take some 4 MB.
	maxAnswer = 64 << 20
	// maxLine bounds one event of a watch.
	maxLine = 64 << 10
)

// Client asks one node. Close it when done.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client for the admin socket at the path; it connects when it
// is first asked.
func New(socket string) *Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		MaxIdleConns:       1,
	}}}
}

// Close releases the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns how the node is doing.
func (c *Client) Status(ctx context.Context) (s api.Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Services returns the services that the node knows.
func (c *Client) Services(ctx context.Context) (s []api.Service, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/services", nil, &s)
}

// Workloads returns the node's workloads.
func (c *Client) Workloads(ctx context.Context) (w []api.Workload, err error) {
	return w, c.do(ctx, http.MethodGet, "/v1/workloads", nil, &w)
}

// Connections returns the open connections that the filter chooses.
func (c *Client) Connections(ctx context.Context, f api.ConnectionFilter) (l api.Connections, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/connections?"+query(f), nil, &l)
}

// ExplainPolicy returns what policy says to a connection, and why.
func (c *Client) ExplainPolicy(ctx context.Context, q api.PolicyQuery) (e api.PolicyExplanation, err error) {
	return e, c.do(ctx, http.MethodPost, "/v1/policy/test", q, &e)
}

// Config returns the configuration in force.
func (c *Client) Config(ctx context.Context) (v api.Config, err error) {
	return v, c.do(ctx, http.MethodGet, "/v1/config", nil, &v)
}

// CA returns what the node trusts and its leaves.
func (c *Client) CA(ctx context.Context) (v api.CA, err error) {
	return v, c.do(ctx, http.MethodGet, "/v1/ca", nil, &v)
}

// SetSplice turns splicing off, or back on where it is safe.
func (c *Client) SetSplice(ctx context.Context, s api.SpliceControl) (state api.Splice, err error) {
	err = c.do(ctx, http.MethodPut, "/v1/splice", s, &state)
	return state, err
}

// SetBypass takes a workload out of the mesh, or back into it.
func (c *Client) SetBypass(ctx context.Context, b api.Bypass) error {
	return c.do(ctx, http.MethodPut, "/v1/bypass", b, &b)
}

// Reload makes the node read its configuration again. It may become an upgrade.
func (c *Client) Reload(ctx context.Context) (r api.Reload, err error) {
	return r, c.await(ctx, http.MethodPost, "/v1/reload", nil, &r)
}

// Upgrade makes the node give way to a new process of its executable. How long
// that may take is configuration, which the node follows.
func (c *Client) Upgrade(ctx context.Context) (u api.Upgrade, err error) {
	return u, c.await(ctx, http.MethodPost, "/v1/upgrade", nil, &u)
}

// Drain makes the node finish what is open and accept nothing new.
func (c *Client) Drain(ctx context.Context) (d api.Drain, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/drain", nil, &d)
}

// LogLevel returns the level of the node's log.
func (c *Client) LogLevel(ctx context.Context) (l api.LogLevel, err error) {
	return l, c.do(ctx, http.MethodGet, "/v1/log/level", nil, &l)
}

// SetLogLevel changes the level of the node's log until it restarts.
func (c *Client) SetLogLevel(ctx context.Context, l api.LogLevel) error {
	return c.do(ctx, http.MethodPut, "/v1/log/level", l, &l)
}

// WatchConnections calls each for every event until ctx is done (nil), the
// node goes, or each returns an error.
func (c *Client) WatchConnections(ctx context.Context, f api.ConnectionFilter, each func(api.ConnectionEvent) error) error {
	answer, err := c.send(ctx, http.MethodGet, "/v1/connections/watch?"+query(f), nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue // keep-alive
		}
		var e api.ConnectionEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("watch connections: %w", err)
	}
	return fmt.Errorf("watch connections: %w", io.ErrUnexpectedEOF)
}

func query(f api.ConnectionFilter) string {
	v := url.Values{}
	for key, value := range map[string]string{
		"source": f.Source, "destination": f.Destination, "service": f.Service,
		"path": f.Path, "direction": f.Direction,
	} {
		if value != "" {
			v.Set(key, value)
		}
	}
	if f.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.Limit))
	}
	return v.Encode()
}

// do sends a question and reads the answer into v.
func (c *Client) do(ctx context.Context, method, path string, question, v any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return c.await(ctx, method, path, question, v)
}

// await is do for what takes as long as it takes.
func (c *Client) await(ctx context.Context, method, path string, question, v any) error {
	answer, err := c.send(ctx, method, path, question)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

// send returns the answer when it is a good one; the caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, question any) (*http.Response, error) {
	var body io.Reader
	if question != nil {
		text, err := json.Marshal(question)
		if err != nil {
			return nil, fmt.Errorf("write request: %w", err)
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://node"+path, body)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	if answer.StatusCode/100 != 2 {
		defer answer.Body.Close()
		return nil, c.refusal(answer)
	}
	return answer, nil
}

// explain says what an error of the socket means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: no socket at %s", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: nobody answers on %s", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the socket %s is for root and the node's own user", ErrNotPermitted, c.socket)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // "Get http://node/..." says nothing to people
	}
	return fmt.Errorf("ask the node on %s: %w", c.socket, err)
}

// refusal reads an error that the node answered.
func (c *Client) refusal(answer *http.Response) error {
	known := new(api.Error)
	err := json.NewDecoder(io.LimitReader(answer.Body, maxLine)).Decode(known)
	switch {
	case err != nil || known.Message == "":
		return fmt.Errorf("ask the node on %s: %s", c.socket, answer.Status)
	case known.Kind == api.KindForbidden:
		return fmt.Errorf("%w: %w", ErrNotPermitted, known)
	default:
		return known
	}
}
