// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

const (
	// answerTime is how long an agent may take over an answer that it need
	// not wait for.
	answerTime = 10 * time.Second
	// longWait is how long a blocking query waits for a change. Consul's own
	// five minutes would hide for as long that an agent hangs.
	longWait = 50 * time.Second
)

var (
	errNoLeader = errors.New("the Consul servers have no leader")
	errStale    = errors.New("the Consul server has not heard from its leader lately")
)

// maxStale is how old the view of the server that answers may be. A server
// that was cut off or has just started knows less than what is in force here.
const maxStale = 30 * time.Second

// question is a GET; the zero value of all but path asks at once.
type question struct {
	path, filter, datacenter, namespace, partition string
	index                                          uint64
	wait                                           time.Duration
	more                                           url.Values
}

// ask decodes the answer to a question into out. Any server may answer, as
// the agent's own caches have it (agent/cache-types), but what one says that
// knows no leader is no answer: it may have just started, with nothing in it.
func (r *run) ask(ctx context.Context, q question, out any) (*api.QueryMeta, error) {
	o := r.options(q)
	ctx, cancel := context.WithTimeout(ctx, o.WaitTime+o.WaitTime/16+answerTime)
	defer cancel()
	if q.more != nil {
		ctx = consulagent.With(ctx, q.more)
	}
	meta, err := r.opts.Agent.Raw().Query(q.path, out, o.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	return meta, trusted(q.path, meta)
}

func (r *run) options(q question) *api.QueryOptions {
	o := &api.QueryOptions{
		Filter: q.filter, Datacenter: q.datacenter, Namespace: q.namespace, Partition: q.partition,
		WaitIndex: q.index, AllowStale: true,
	}
	if q.index > 0 {
		o.WaitTime = q.wait
	}
	o.Namespace = r.tenancy.namespace(q.namespace)
	o.Partition = tenantOf(q.partition, r.opts.Partition, standard)
	return o
}

// streaming is the backend of answers from views that the agent keeps.
const streaming = "streaming"

// pathLeader is answered without a word about leaders in its header.
const pathLeader = "/v1/status/leader"

// trusted says whether an answer may replace what is known. The agent's own
// views, and what it knows itself, say nothing about leaders.
func trusted(path string, meta *api.QueryMeta) error {
	switch {
	case strings.HasPrefix(path, "/v1/agent/"), path == pathLeader, meta.QueryBackend == streaming:
		return nil
	case !meta.KnownLeader:
		return errNoLeader
	case meta.LastContact > maxStale:
		return errStale
	}
	return nil
}

// plainly says what is wrong with the agent, in the same words each time.
func plainly(address string, err error) error {
	var status api.StatusError
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.Is(err, errNoLeader), errors.Is(err, errStale), errors.Is(err, errUnseen):
		return err
	case errors.As(err, &status):
		body, _, _ := strings.Cut(strings.TrimSpace(status.Body), "\n")
		if strings.Contains(body, "No cluster leader") {
			return errNoLeader
		}
		//lint:ignore ST1005 Consul is a name.
		return fmt.Errorf("Consul agent %s: %d: %s", address, status.Code, body)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		//lint:ignore ST1005 Consul is a name.
		return fmt.Errorf("Consul agent %s does not answer", address)
	case errors.As(err, &errno):
		//lint:ignore ST1005 Consul is a name.
		return fmt.Errorf("Consul agent %s cannot be reached: %w", address, errno)
	}
	//lint:ignore ST1005 Consul is a name.
	return fmt.Errorf("Consul agent %s: %w", address, err)
}

// particular reports whether an error is about what was asked for, such as a
// chain that cannot be compiled, rather than about the agent.
func particular(err error) bool {
	var status api.StatusError
	return errors.As(err, &status) && !consulagent.RateLimited(err) &&
		!strings.Contains(status.Body, "No cluster leader") && !strings.Contains(status.Body, "rpc error") &&
		status.Code != http.StatusServiceUnavailable && status.Code != http.StatusBadGateway
}

// refused reports whether an error is about rights, which time alone does not
// mend.
func refused(err error) bool { return consulagent.Refused(err) }
