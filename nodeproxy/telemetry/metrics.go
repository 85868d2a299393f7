// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Other stands for every label value beyond Options.MaxSeries.
const Other = "other"

const (
	namespace = "meshproxy"
	// defaultMaxSeries bounds the label sets: some 2,000 pairs of workloads
	// that talk, seen from both sides, take 1 MiB.
	defaultMaxSeries = 4096
	// idleSeries is how long a label set without connections is kept: much
	// longer than any scrape interval, and short enough that workloads that
	// come and go don't use up MaxSeries.
	idleSeries = time.Hour
)

// Options configure Metrics.
type Options struct {
	// Version is shown by meshproxy_build_info.
	Version string
	// MaxSeries bounds the label sets of connections, and those of
	// refusals; zero means 4096.
	MaxSeries int
	// AccessLog gets connections as they end or are refused; may be nil.
	AccessLog *AccessLog
	// Read is asked at each scrape.
	Read Readings
	// Log takes what goes wrong at a scrape; nil means slog.Default.
	Log *slog.Logger
	// Now is time.Now, or a test's clock.
	Now func() time.Time
}

// Metrics are the node's figures. All methods may be called from any
// goroutine.
type Metrics struct {
	now       func() time.Time
	maxSeries int
	accessLog *AccessLog
	registry  *prometheus.Registry
	log       *slog.Logger
	lastID    atomic.Uint64
	watchers  watchers
	kernel    func() []View

	// Handshakes and DNS are counted by those who do them.
	Handshakes *Handshakes
	DNS        *DNS

	endedTotal   *prometheus.CounterVec
	auditedTotal *prometheus.CounterVec

	mu        sync.Mutex
	shards    []*Shard
	series    map[Key]*series
	overflows uint64

	refusals refusals
}

// New returns Metrics with a registry of its own.
func New(o Options) *Metrics {
	if o.MaxSeries == 0 {
		o.MaxSeries = defaultMaxSeries
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	m := &Metrics{
		now: o.Now, maxSeries: o.MaxSeries, accessLog: o.AccessLog, log: o.Log,
		registry: prometheus.NewRegistry(),
		series:   make(map[Key]*series),
		refusals: refusals{max: o.MaxSeries, counts: make(map[refusalKey]*atomic.Uint64)},
		endedTotal: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "connections_ended_early_total",
			Help: "Connections that were open and ended for a reason other than their peers' wish.",
		}, []string{"direction", "reason"}),
	}
	m.Handshakes = newHandshakes(m.registry)
	m.DNS = newDNS(m.registry)
	m.auditedTotal = newAudited(m.registry)
	m.registry.MustRegister(
		m.endedTotal,
		connectionCollector{m},
		refusalCollector{m},
		readingCollector{read: o.Read, now: o.Now, log: o.Log},
		buildInfo(o.Version),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if o.AccessLog != nil {
		m.registry.MustRegister(accessLogCollector{o.AccessLog})
	}
	return m
}

// Handler serves the metrics in Prometheus' formats.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(m.log.Handler(), slog.LevelError),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: 4,
		Timeout:             10 * time.Second,
	})
}

// Gatherer is the registry, for tests and for others' collectors.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.registry }

func (m *Metrics) ended(d Direction, r reason.Reason) {
	m.endedTotal.WithLabelValues(string(d), r.String()).Inc()
}

func buildInfo(version string) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the version is a label.",
		ConstLabels: prometheus.Labels{"version": version},
	}, func() float64 { return 1 })
}

// desc describes a metric of the product.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var pairLabels = []string{"direction", "path", "source", "destination", "service"}

var (
	openedDesc   = desc("connections_opened_total", "Connections opened.", pairLabels...)
	closedDesc   = desc("connections_closed_total", "Connections closed.", pairLabels...)
	activeDesc   = desc("connections_active", "Connections open now.", pairLabels...)
	sentDesc     = desc("sent_bytes_total", "Bytes from source to destination.", pairLabels...)
	receivedDesc = desc("received_bytes_total", "Bytes from destination back to source.", pairLabels...)
	connectDesc  = desc("connect_duration_seconds", "Time from choosing an endpoint until it was reached.", pairLabels...)
	seriesDesc   = desc("label_sets", "Label sets that connections count under, of the most that are kept apart.", "limit")
	overflowDesc = desc("label_overflows_total", "Connections that counted under \"other\" because there were too many label sets.")
)

// connectionCollector sums the shards at a scrape.
type connectionCollector struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (connectionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		openedDesc, closedDesc, activeDesc, sentDesc, receivedDesc, connectDesc, seriesDesc, overflowDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c connectionCollector) Collect(ch chan<- prometheus.Metric) {
	sums, overflows := c.m.sums()
	for key, t := range sums {
		labels := []string{string(key.Direction), string(key.Path), key.Source, key.Destination, key.Service}
		ch <- counter(openedDesc, float64(t.opened), labels...)
		ch <- counter(closedDesc, float64(t.closed), labels...)
		ch <- gauge(activeDesc, float64(t.opened-t.closed), labels...)
		ch <- counter(sentDesc, float64(t.sent), labels...)
		ch <- counter(receivedDesc, float64(t.received), labels...)
		count, sum, buckets := t.connect.prometheus()
		ch <- prometheus.MustNewConstHistogram(connectDesc, count, sum, buckets, labels...)
	}
	ch <- gauge(seriesDesc, float64(len(sums)), formatInt(c.m.maxSeries))
	ch <- counter(overflowDesc, float64(overflows))
}

// sums evicts what is idle and adds up the rest.
func (m *Metrics) sums() (map[Key]totals, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.evictIdle()
	sums := make(map[Key]totals, len(m.series))
	for key, s := range m.series {
		sums[key] = s.totals()
	}
	return sums, m.overflows
}
