// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	miekg "github.com/miekg/dns"
)

const (
	// patience bounds the search for an answer, over all resolvers and
	// attempts. Clients give up after 5 seconds, by default.
	patience = 10 * time.Second
	// sulk is how long a resolver that didn't answer is asked last.
	sulk = 10 * time.Second
)

// upstreams is what resolv.conf(5), or the configuration, says about
// resolvers.
type upstreams struct {
	servers []netip.AddrPort
	// timeout is that of one question to one server; attempts is how often
	// the whole list is gone through.
	timeout  time.Duration
	attempts int
	// rotate spreads the queries over the servers.
	rotate bool
}

// forwarder asks the node's resolvers.
type forwarder struct {
	dialer  net.Dialer
	conf    *resolvConf
	isOwn   func(netip.AddrPort) bool
	now     func() time.Time
	log     *slog.Logger
	fixed   atomic.Pointer[upstreams]
	rotated atomic.Uint32

	mu sync.Mutex
	// down holds the servers that didn't answer, and until when they are
	// asked last.
	down map[netip.AddrPort]time.Time
}

func newForwarder(o Options, isOwn func(netip.AddrPort) bool) *forwarder {
	f := &forwarder{
		dialer: net.Dialer{Control: o.Control},
		conf:   &resolvConf{path: o.ResolvConf, now: o.Now, log: o.Logger},
		isOwn:  isOwn, now: o.Now, log: o.Logger,
		down: map[netip.AddrPort]time.Time{},
	}
	// The programs that capture connections do not see MPTCP.
	f.dialer.SetMultipathTCP(false)
	return f
}

// use replaces the configured resolvers; none means those of resolv.conf.
func (f *forwarder) use(servers []netip.AddrPort) {
	if len(servers) == 0 {
		f.fixed.Store(nil)
		return
	}
	f.fixed.Store(fixed(servers))
}

func fixed(servers []netip.AddrPort) *upstreams {
	return &upstreams{servers: slices.Clone(servers), timeout: defaultTimeout, attempts: defaultAttempts}
}

// ask gets the answer to a query from the node's resolvers, or makes one that
// says that there is none. It returns nil when the listener has been stopped:
// the client shall ask again rather than give up.
func (s *Server) ask(ctx context.Context, q *query) (answer []byte) {
	defer func() {
		if fault := recover(); fault != nil {
			s.options.Logger.Error("forward DNS query", "panic", fault, "stack", string(debug.Stack()))
			s.options.Metrics.Query(ResultFailed)
			answer = errorAnswer(q.raw, q.question, miekg.RcodeServerFailure)
		}
	}()
	start := s.options.Now()
	m, err := s.forward.ask(ctx, q)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	if err != nil {
		result := ResultFailed
		if timedOut(err) {
			result = ResultTimeout
		}
		s.options.Metrics.Query(result)
		s.options.Logger.Debug("forward DNS query", "error", err)
		return errorAnswer(q.raw, q.question, miekg.RcodeServerFailure)
	}
	s.options.Metrics.Query(ResultForwarded)
	s.options.Metrics.Forwarded(s.options.Now().Sub(start))
	return q.fit(m)
}

// ask goes through the resolvers as the resolver of glibc does: one that
// doesn't answer, or answers that it can't or won't, makes room for the next.
// Such an answer is returned when nobody has a better one.
func (f *forwarder) ask(ctx context.Context, q *query) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	up := q.via
	if up == nil {
		up = f.upstreams()
	}
	order := f.order(up)
	if len(order) == 0 {
		return nil, errNoUpstream
	}
	var poor []byte
	var last error
	for range up.attempts {
		for _, server := range order {
			m, err := f.askOne(ctx, server, q, up.timeout)
			if ctx.Err() != nil && err != nil {
				// Not this server's fault.
				return orError(poor, errors.Join(err, last))
			}
			f.judge(server, err)
			if err != nil {
				last = err
				continue
			}
			switch m[atRcode] & maskRcode {
			case miekg.RcodeServerFailure, miekg.RcodeNotImplemented, miekg.RcodeRefused:
				poor = m
			default:
				return m, nil
			}
		}
		if poor != nil {
			// Asking the same again would give the same.
			break
		}
	}
	return orError(poor, last)
}

func orError(m []byte, err error) ([]byte, error) {
	if m != nil {
		return m, nil
	}
	return nil, err
}

func (f *forwarder) upstreams() *upstreams {
	if up := f.fixed.Load(); up != nil {
		return up
	}
	return f.conf.upstreams()
}

// order returns the servers in the order in which they are to be asked,
// without ourselves.
func (f *forwarder) order(up *upstreams) []netip.AddrPort {
	servers := slices.Clone(up.servers)
	if n := len(servers); up.rotate && n > 1 {
		first := int(f.rotated.Add(1) % uint32(n))
		servers = append(servers[first:n:n], servers[:first]...)
	}
	servers = slices.DeleteFunc(servers, f.isOwn)
	now := f.now()
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.SortStableFunc(servers, func(a, b netip.AddrPort) int {
		return rank(now.Before(f.down[a])) - rank(now.Before(f.down[b]))
	})
	return servers
}

func rank(down bool) int {
	if down {
		return 1
	}
	return 0
}

// judge remembers whether a server answers.
func (f *forwarder) judge(server netip.AddrPort, err error) {
	f.mu.Lock()
	_, wasDown := f.down[server]
	if err != nil {
		f.down[server] = f.now().Add(sulk)
	} else {
		delete(f.down, server)
	}
	f.mu.Unlock()
	switch {
	case err != nil && !wasDown:
		f.log.Warn("DNS resolver does not answer", "resolver", server.String(), "error", err)
	case err == nil && wasDown:
		f.log.Info("DNS resolver answers again", "resolver", server.String())
	}
}
