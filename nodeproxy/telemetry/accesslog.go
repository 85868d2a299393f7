// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

const (
	// accessQueue is how many entries may wait for a slow writer: under half
	// a megabyte, and a tenth of a second of a busy node.
	accessQueue = 1024
	// flushSuppressed is how often suppressed entries are reported that no
	// later entry of their kind reported.
	flushSuppressed = 10 * time.Second
)

// AccessLog writes one line per connection that ended or was refused. Callers
// never wait: what the writer can't take is dropped and counted, and problems of
// one kind are limited, so that a flood can't fill the disk.
type AccessLog struct {
	all        bool
	handler    slog.Handler
	limits     refusalLimits
	queue      chan Entry
	quit       chan struct{}
	done       chan struct{}
	closing    sync.Once
	dropped    atomic.Uint64
	suppressed atomic.Uint64
	written    atomic.Uint64
}

// AccessOptions configure an AccessLog.
type AccessOptions struct {
	Format string // FormatText or FormatJSON
	// All: each connection when it ends; else only those that were refused
	// or ended early.
	All bool
}

// NewAccessLog returns a log that writes to w until Close. w must accept
// writes from a goroutine of the log's own.
func NewAccessLog(w io.Writer, o AccessOptions) (*AccessLog, error) {
	handler, err := NewLogHandler(w, o.Format, slog.LevelInfo)
	if err != nil {
		return nil, err
	}
	l := &AccessLog{
		all:     o.All,
		handler: handler,
		limits:  refusalLimits{kinds: make(map[refusalKind]*bucket)},
		queue:   make(chan Entry, accessQueue),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	go l.run()
	return l, nil
}

// Close writes what is queued and stops; entries that come later are dropped.
func (l *AccessLog) Close() {
	l.closing.Do(func() { close(l.quit) })
	<-l.done
}

func (l *AccessLog) write(e *Entry) {
	select {
	case l.queue <- *e:
	default:
		l.dropped.Add(1)
	}
}

// wants reports whether a connection that ended for a reason is written.
func (l *AccessLog) wants(r reason.Reason) bool { return l.all || r != reason.None }

func (l *AccessLog) closed(e *Entry) {
	if l.all {
		l.write(e)
	} else {
		l.limited(e)
	}
}

// limited writes unless too many of the kind were written just now.
func (l *AccessLog) limited(e *Entry) {
	ok, suppressed := l.limits.allow(e)
	if !ok {
		l.suppressed.Add(1)
		return
	}
	e.Suppressed = suppressed
	l.write(e)
}

func (l *AccessLog) run() {
	defer close(l.done)
	ticker := time.NewTicker(flushSuppressed)
	defer ticker.Stop()
	for {
		select {
		case e := <-l.queue:
			l.emit(&e)
		case now := <-ticker.C:
			l.emitSuppressed(now)
		case <-l.quit:
			l.drain()
			return
		}
	}
}

func (l *AccessLog) drain() {
	for {
		select {
		case e := <-l.queue:
			l.emit(&e)
		default:
			l.emitSuppressed(time.Now())
			return
		}
	}
}

func (l *AccessLog) emit(e *Entry) {
	// Nobody is left to tell when the log itself can't be written, save for
	// the counter.
	if err := l.handler.Handle(context.Background(), e.logRecord()); err != nil {
		l.dropped.Add(1)
		return
	}
	l.written.Add(1)
}

func (l *AccessLog) emitSuppressed(now time.Time) {
	for _, s := range l.limits.takeSuppressed(now) {
		line := slog.NewRecord(now, slog.LevelWarn, "entries suppressed", 0)
		line.AddAttrs(
			slog.String("direction", string(s.kind.direction)), slog.String("source", s.kind.source),
			slog.String("reason", s.kind.reason.String()), slog.Uint64("suppressed", s.count))
		if err := l.handler.Handle(context.Background(), line); err != nil {
			l.dropped.Add(1)
		}
	}
}

var (
	accessWrittenDesc    = desc("access_log_entries_total", "Entries of the access log that were written.")
	accessDroppedDesc    = desc("access_log_dropped_total", "Entries of the access log that were dropped because the writer was too slow or broken.")
	accessSuppressedDesc = desc("access_log_suppressed_total", "Entries that were not written because there were too many of their kind.")
)

type accessLogCollector struct{ l *AccessLog }

// Describe implements prometheus.Collector.
func (accessLogCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- accessWrittenDesc
	ch <- accessDroppedDesc
	ch <- accessSuppressedDesc
}

// Collect implements prometheus.Collector.
func (c accessLogCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- counter(accessWrittenDesc, float64(c.l.written.Load()))
	ch <- counter(accessDroppedDesc, float64(c.l.dropped.Load()))
	ch <- counter(accessSuppressedDesc, float64(c.l.suppressed.Load()))
}
