// SPDX-License-Identifier: Apache-2.0

package consulagent

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hashicorp/consul/api"
)

// Question is a GET of many.
type Question struct {
	Path    string
	Options *api.QueryOptions
}

// Answer is what is read of an answer to one of many questions.
type Answer struct {
	Status   int
	Index    uint64 // 0: none
	Filtered bool   // ACLs left something out
}

const (
	// glanceDepth questions are sent before the answers are read: few enough that
	// the agent's socket takes them while nobody reads what it says.
	glanceDepth = 32
	// glanceTime is how long the answers to so many may take.
	glanceTime = 10 * time.Second
)

// Glance asks many questions whose answers are mostly known, on one connection of
// its own and without waiting for one answer before the next question (RFC 9112,
// section 9.3.2), and hands take the answers in order. net/http hands each request
// and each answer from goroutine to goroutine, which is ten times the work. After
// an error the rest is not answered.
func (a *Agent) Glance(ctx context.Context, questions []Question, take func(i int, answer Answer)) error {
	token, err := a.token.current()
	if err != nil {
		return err
	}
	conn, err := a.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect to Consul: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	in, out := bufio.NewReader(conn), bufio.NewWriter(conn)
	for first := 0; first < len(questions); first += glanceDepth {
		some := questions[first:min(first+glanceDepth, len(questions))]
		if err := conn.SetDeadline(time.Now().Add(glanceTime)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		for i := range some {
			if err := a.request(&some[i], token).Write(out); err != nil {
				return fmt.Errorf("ask Consul: %w", err)
			}
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("ask Consul: %w", err)
		}
		for i := range some {
			answer, err := readAnswer(in)
			if err != nil {
				return fmt.Errorf("read Consul's answer: %w", err)
			}
			take(first+i, answer)
		}
	}
	return nil
}

// connect dials the agent for HTTP/1.1, whatever else it speaks.
func (a *Agent) connect(ctx context.Context) (net.Conn, error) {
	conn, err := a.endpoint.dial(ctx, "tcp", a.endpoint.host)
	if err != nil || a.tls == nil {
		return conn, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	secure := tls.Client(conn, a.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// request is what package api would make of it.
func (a *Agent) request(q *Question, token string) *http.Request {
	o, v := q.Options, make(url.Values)
	set := func(name, value, standard string) {
		if value == "" {
			value = standard
		}
		if value != "" {
			v.Set(name, value)
		}
	}
	set("dc", o.Datacenter, a.settings.Datacenter)
	set("ns", o.Namespace, a.settings.Namespace)
	set("partition", o.Partition, a.settings.Partition)
	set("filter", o.Filter, "")
	if o.AllowStale {
		v.Set("stale", "")
	}
	if o.WaitIndex != 0 {
		v.Set("index", strconv.FormatUint(o.WaitIndex, 10))
		v.Set("wait", strconv.FormatInt(o.WaitTime.Milliseconds(), 10)+"ms")
	}
	r := &http.Request{
		Method: http.MethodGet, Host: a.endpoint.host, Header: make(http.Header),
		URL: &url.URL{Scheme: a.endpoint.scheme, Host: a.endpoint.host, Path: q.Path, RawQuery: v.Encode()},
	}
	if token != "" {
		r.Header.Set(header, token)
	}
	return r
}

var errLastAnswer = errors.New("the agent ends the connection")

func readAnswer(in *bufio.Reader) (Answer, error) {
	r, err := http.ReadResponse(in, nil)
	if err != nil {
		return Answer{}, err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return Answer{}, err
	}
	if r.Close {
		return Answer{}, errLastAnswer
	}
	index, _ := strconv.ParseUint(r.Header.Get(indexHeader), 10, 64)
	return Answer{r.StatusCode, index, r.Header.Get(filteredHeader) == "true"}, nil
}
