// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"time"
)

// caller is the role "call".
type caller struct {
	url      string
	tcp      string
	echo     string
	body     string
	fresh    bool // a new connection for each call
	timeout  time.Duration
	client   *http.Client
	mu       sync.Mutex
	window   Stats
	latency  []time.Duration
	lastPeer string
}

func call(ctx context.Context, args []string, out *reporter) error {
	c := &caller{}
	var rate float64
	var interval time.Duration
	var workers, count int
	fs := flag.NewFlagSet("call", flag.ContinueOnError)
	fs.StringVar(&c.url, "url", "", "HTTP URL to post to")
	fs.StringVar(&c.tcp, "tcp", "", "host:port of a line server")
	fs.StringVar(&c.echo, "echo", "", "host:port of an echo server: sends messages of all sizes, and compares what comes back")
	fs.StringVar(&c.body, "body", "ping", "what to send: one line")
	fs.BoolVar(&c.fresh, "fresh", false, "a new connection for each call")
	fs.DurationVar(&c.timeout, "timeout", 5*time.Second, "for one call")
	fs.Float64Var(&rate, "rate", 50, "calls per second of each worker; 0 is as fast as possible")
	fs.DurationVar(&interval, "interval", time.Second, "between reports")
	fs.IntVar(&workers, "workers", 1, "concurrent connections")
	fs.IntVar(&count, "count", 0, "end after so many calls of each worker; 0 is never")
	if err := parse(fs, args); err != nil {
		return err
	}
	targets := slices.DeleteFunc([]string{c.url, c.tcp, c.echo}, func(s string) bool { return s == "" })
	if len(targets) != 1 || workers < 1 || interval <= 0 {
		return fmt.Errorf("%w: call: one of -url, -tcp and -echo, a worker and an interval are needed", errUsage)
	}
	transport := &http.Transport{DisableKeepAlives: c.fresh, MaxIdleConnsPerHost: workers}
	defer transport.CloseIdleConnections()
	c.client = &http.Client{Transport: transport, Timeout: c.timeout}

	var wg sync.WaitGroup
	done := make(chan struct{})
	for range workers {
		wg.Go(func() { c.loop(ctx, rate, count) })
	}
	go func() { wg.Wait(); close(done) }()
	out.report(Ready{Event: EventReady})
	tick := time.NewTicker(interval)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
			out.report(c.take(time.Since(last)))
			last = time.Now()
		case <-done:
			out.report(c.take(time.Since(last)))
			return nil
		}
	}
}

// loop calls at the given rate until the context ends.
func (c *caller) loop(ctx context.Context, rate float64, count int) {
	do := c.http
	if c.url == "" {
		conn := &connection{caller: c, exchange: c.line}
		if c.echo != "" {
			conn.exchange = newEchoes().exchange
		}
		defer conn.close()
		do = conn.call
	}
	var pace <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer t.Stop()
		pace = t.C
	}
	for i := 0; count == 0 || i < count; i++ {
		begin := time.Now()
		seen, err := do(ctx)
		if ctx.Err() != nil {
			return
		}
		c.add(time.Since(begin), seen, err)
		if pace == nil {
			if err == nil {
				continue
			}
			// Nothing is gained by failing as fast as possible.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case <-pace:
		case <-ctx.Done():
			return
		}
	}
}

func (c *caller) add(d time.Duration, seen *Seen, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.window.Errors++
		c.window.Error = errorName(err)
		return
	}
	c.window.Requests++
	c.latency = append(c.latency, d)
	if seen == nil {
		return
	}
	c.window.Seen = seen
	if c.window.Servers == nil {
		c.window.Servers = map[string]int{}
	}
	c.window.Servers[seen.Server]++
}

// take returns the window and begins the next one.
func (c *caller) take(d time.Duration) Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.window
	s.Event, s.Target, s.Seconds, s.Peer = EventStats, c.url+c.tcp+c.echo, d.Seconds(), c.lastPeer
	s.P50, s.P99, s.Max = percentile(c.latency, 50), percentile(c.latency, 99), percentile(c.latency, 100)
	c.window, c.latency = Stats{}, c.latency[:0]
	return s
}

// percentile sorts d and returns its p-th percentile in microseconds.
func percentile(d []time.Duration, p int) int64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, len(d)*p/100)].Microseconds()
}

func (c *caller) setPeer(conn net.Conn) {
	peer := peersOf(conn, false).Peer
	c.mu.Lock()
	c.lastPeer = peer
	c.mu.Unlock()
}

func (c *caller) http(ctx context.Context) (*Seen, error) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			if !info.Reused {
				c.setPeer(info.Conn)
			}
		},
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(c.body))
	if err != nil {
		return nil, err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	var seen Seen
	if err := json.Unmarshal(data, &seen); err != nil {
		return nil, fmt.Errorf("parse answer: %w", err)
	}
	return &seen, nil
}

// connection is what calls are made over, a new one after an error.
type connection struct {
	*caller
	exchange func(*connection) (*Seen, error)
	conn     net.Conn
	r        *bufio.Reader
}

func (l *connection) call(ctx context.Context) (*Seen, error) {
	seen, err := l.once(ctx)
	if err != nil || l.fresh {
		l.close()
	}
	return seen, err
}

func (l *connection) once(ctx context.Context) (*Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	if l.conn == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", l.tcp+l.echo)
		if err != nil {
			return nil, err
		}
		l.conn, l.r = conn, bufio.NewReader(conn)
		l.setPeer(conn)
	}
	deadline, _ := ctx.Deadline()
	_ = l.conn.SetDeadline(deadline)
	// A stop must not wait for an answer.
	stop := context.AfterFunc(ctx, func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return l.exchange(l)
}

// line has the line server say what it sees.
func (c *caller) line(l *connection) (*Seen, error) {
	if _, err := fmt.Fprintln(l.conn, c.body); err != nil {
		return nil, err
	}
	line, err := l.r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	var seen Seen
	if err := json.Unmarshal(line, &seen); err != nil {
		return nil, fmt.Errorf("parse answer: %w", err)
	}
	return &seen, nil
}

func (l *connection) close() {
	if l.conn != nil {
		_ = l.conn.Close()
		l.conn = nil
	}
}
