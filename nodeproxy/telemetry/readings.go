// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"log/slog"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Readings are figures that others keep; a scrape asks for them. Each function
// may be nil, and is called from any goroutine.
type Readings struct {
	Snapshot func() SnapshotReading
	Sources  func() []SourceReading
	Pool     func() []PoolReading
	Loops    func() []LoopReading
	Leaves   func() []LeafReading
	Capture  func() (CaptureReading, error)
	Upgrade  func() UpgradeReading
}

// UpgradeReading says how this process came to serve.
type UpgradeReading struct {
	Generation int
	At         time.Time // zero: it was the first
	Failed     int
	// PredecessorConnections are those that the process before still drains.
	PredecessorConnections int
}

// SnapshotReading is the state of discovery's snapshot.
type SnapshotReading struct {
	Version                                  uint64
	Built                                    time.Time
	Services, Endpoints, Workloads, Policies int
}

// SourceReading is the state of a source.
type SourceReading struct {
	Name         string
	Ready, Stale bool
	Since        time.Time
}

// PoolReading is the state of the tunnels of one transport.
type PoolReading struct {
	Transport                         string
	Role                              Role
	Connections, Streams, Handshaking int
}

// LoopReading is the state of one event loop.
type LoopReading struct {
	Loop        int
	Turns       uint64
	Descriptors int
	// Lag is the longest turn of the last seconds.
	Lag time.Duration
}

// LeafReading is the leaf in use for a workload.
type LeafReading struct {
	Workload string
	NotAfter time.Time
}

// CaptureReading are the counters of the programs in the kernel.
type CaptureReading struct {
	Captured, Passthrough uint64
	// Refused is by reason.
	Refused map[string]uint64
	Flows   int
	// HeartbeatAge is how long ago the data path was last seen alive.
	HeartbeatAge time.Duration
	Destinations []CaptureDestination
	Direct       DirectReading
	Hops         HopReading
}

// HopReading is what went between applications and the proxy without TCP.
type HopReading struct {
	On            bool // new connections are spliced
	Spliced, Left uint64
	// FromApplications and FromProxy are bytes.
	FromApplications, FromProxy uint64
	// Fallbacks counts how often an end began to send by TCP, by reason.
	Fallbacks map[string]uint64
}

// DirectReading is what went between workloads of this node without the proxy.
type DirectReading struct {
	On                      bool // new connections are spliced
	Opened, Closed, Spliced uint64
	Sent, Received          uint64
	Redirected              uint64 // of both: not by TCP
	// Fallbacks counts how often an end began to send by TCP, by reason.
	Fallbacks map[string]uint64
	Pairs     []DirectPair
}

// DirectPair is the part of a workload and a service.
type DirectPair struct {
	Workload, Service       string
	Opened, Closed, Spliced uint64
	Sent, Received          uint64
	Redirected              uint64
}

// CaptureDestination counts what a workload dialled.
type CaptureDestination struct {
	Workload, Service string
	Connections       uint64
}

var (
	snapshotVersionDesc = desc("snapshot_version", "Version of the snapshot in force.")
	snapshotAgeDesc     = desc("snapshot_age_seconds", "Time since the snapshot in force was built.")
	snapshotSizeDesc    = desc("snapshot_objects", "Objects in the snapshot in force.", "kind")
	sourceReadyDesc     = desc("source_ready", "1 when the source has delivered.", "source")
	sourceStaleDesc     = desc("source_stale", "1 when the source is away and its last view is in force.", "source")
	sourceSinceDesc     = desc("source_state_age_seconds", "Time since the source's state changed.", "source")
	poolConnsDesc       = desc("tunnel_connections", "Open tunnels.", "transport", "role")
	poolStreamsDesc     = desc("tunnel_streams", "Open streams in tunnels.", "transport", "role")
	poolShakingDesc     = desc("tunnel_handshakes_active", "Handshakes under way.", "transport", "role")
	loopTurnsDesc       = desc("loop_turns_total", "Turns of an event loop.", "loop")
	loopLagDesc         = desc("loop_lag_seconds", "Longest turn of an event loop in the last seconds.", "loop")
	loopFDsDesc         = desc("loop_descriptors", "Descriptors registered with an event loop.", "loop")
	leafExpiryDesc      = desc("leaf_expiry_timestamp_seconds", "When the leaf in use for a workload expires.", "workload")
	capturedDesc        = desc("capture_connections_total", "Connections that capture sent to the proxy.")
	passthroughDesc     = desc("capture_passthrough_total", "Connections of workloads that capture left alone.")
	captureRefusedDesc  = desc("capture_refusals_total", "Connections that capture refused in the kernel.", "reason")
	captureFlowsDesc    = desc("capture_flows", "Entries of the flow map.")
	captureBeatDesc     = desc("capture_heartbeat_age_seconds", "Time since the kernel last saw the data path alive.")
	captureDestDesc     = desc("capture_destination_connections_total", "Connections that capture saw, by workload and service.", "source", "service")
	directOpenedDesc    = desc("direct_connections_opened_total", "Connections between workloads of this node without the proxy.", "source", "service")
	directClosedDesc    = desc("direct_connections_closed_total", "Those of them that are closed.", "source", "service")
	directSplicedDesc   = desc("direct_connections_spliced_total", "Those of them that began spliced.", "source", "service")
	directBytesDesc     = desc("direct_bytes_total", "Bytes that they carried; sent by the source, or received.", "source", "service", "direction")
	directRedirectDesc  = desc("direct_redirected_bytes_total", "Those of them, in both directions, that did not go by TCP.", "source", "service")
	directFallbackDesc  = desc("splice_fallbacks_total", "How often an end of a direct connection began to send by TCP.", "reason")
	spliceOnDesc        = desc("splice_on", "1 when new direct connections are spliced.")
	hopOnDesc           = desc("hop_splice_on", "1 when new connections between applications and the proxy are spliced.")
	hopSplicedDesc      = desc("hop_connections_spliced_total", "Connections between applications and the proxy that began spliced.")
	hopLeftDesc         = desc("hop_connections_left_total", "Those of them that turned to TCP for good.")
	hopBytesDesc        = desc("hop_redirected_bytes_total", "Bytes between applications and the proxy that did not go by TCP.", "sender")
	hopFallbackDesc     = desc("hop_fallbacks_total", "How often an end of such a connection began to send by TCP.", "reason")
	generationDesc      = desc("generation", "How many processes have handed over to one another, this one included.")
	upgradedDesc        = desc("upgraded_timestamp_seconds", "When this process took over from another one.")
	upgradesFailedDesc  = desc("upgrades_failed_total", "Upgrades that changed nothing.")
	predecessorDesc     = desc("predecessor_connections", "Connections that the process before still drains.")
	captureUpDesc       = desc("capture_up", "1 when capture's counters could be read.")
)

// readingCollector asks the readings at a scrape. What exists varies, so it is
// an unchecked collector: Describe sends nothing.
type readingCollector struct {
	read Readings
	now  func() time.Time
	log  *slog.Logger
}

// Describe implements prometheus.Collector.
func (readingCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c readingCollector) Collect(ch chan<- prometheus.Metric) {
	c.collectDiscovery(ch)
	c.collectProxy(ch)
	c.collectCapture(ch)
	c.collectUpgrade(ch)
}

func (c readingCollector) collectUpgrade(ch chan<- prometheus.Metric) {
	if c.read.Upgrade == nil {
		return
	}
	u := c.read.Upgrade()
	ch <- gauge(generationDesc, float64(u.Generation))
	ch <- counter(upgradesFailedDesc, float64(u.Failed))
	ch <- gauge(predecessorDesc, float64(u.PredecessorConnections))
	if !u.At.IsZero() {
		ch <- gauge(upgradedDesc, float64(u.At.Unix()))
	}
}

func (c readingCollector) collectDiscovery(ch chan<- prometheus.Metric) {
	if c.read.Snapshot != nil {
		s := c.read.Snapshot()
		ch <- gauge(snapshotVersionDesc, float64(s.Version))
		ch <- gauge(snapshotAgeDesc, c.since(s.Built))
		ch <- gauge(snapshotSizeDesc, float64(s.Services), "service")
		ch <- gauge(snapshotSizeDesc, float64(s.Endpoints), "endpoint")
		ch <- gauge(snapshotSizeDesc, float64(s.Workloads), "workload")
		ch <- gauge(snapshotSizeDesc, float64(s.Policies), "policy")
	}
	if c.read.Sources != nil {
		for _, s := range c.read.Sources() {
			ch <- gauge(sourceReadyDesc, flag(s.Ready), s.Name)
			ch <- gauge(sourceStaleDesc, flag(s.Stale), s.Name)
			ch <- gauge(sourceSinceDesc, c.since(s.Since), s.Name)
		}
	}
}

func (c readingCollector) collectProxy(ch chan<- prometheus.Metric) {
	if c.read.Pool != nil {
		for _, p := range c.read.Pool() {
			ch <- gauge(poolConnsDesc, float64(p.Connections), p.Transport, string(p.Role))
			ch <- gauge(poolStreamsDesc, float64(p.Streams), p.Transport, string(p.Role))
			ch <- gauge(poolShakingDesc, float64(p.Handshaking), p.Transport, string(p.Role))
		}
	}
	if c.read.Loops != nil {
		for _, l := range c.read.Loops() {
			name := formatInt(l.Loop)
			ch <- counter(loopTurnsDesc, float64(l.Turns), name)
			ch <- gauge(loopLagDesc, l.Lag.Seconds(), name)
			ch <- gauge(loopFDsDesc, float64(l.Descriptors), name)
		}
	}
	if c.read.Leaves != nil {
		for _, l := range c.read.Leaves() {
			ch <- gauge(leafExpiryDesc, float64(l.NotAfter.Unix()), l.Workload)
		}
	}
}

func (c readingCollector) collectCapture(ch chan<- prometheus.Metric) {
	if c.read.Capture == nil {
		return
	}
	r, err := c.read.Capture()
	ch <- gauge(captureUpDesc, flag(err == nil))
	if err != nil {
		// The other figures are worth serving without these.
		c.log.Error("read capture's counters", "error", err)
		return
	}
	ch <- counter(capturedDesc, float64(r.Captured))
	ch <- counter(passthroughDesc, float64(r.Passthrough))
	for why, n := range r.Refused {
		ch <- counter(captureRefusedDesc, float64(n), why)
	}
	ch <- gauge(captureFlowsDesc, float64(r.Flows))
	ch <- gauge(captureBeatDesc, r.HeartbeatAge.Seconds())
	collectDirect(ch, &r.Direct)
	collectHops(ch, &r.Hops)
	for _, d := range r.Destinations {
		ch <- counter(captureDestDesc, float64(d.Connections), d.Workload, d.Service)
	}
}

func collectDirect(ch chan<- prometheus.Metric, r *DirectReading) {
	ch <- gauge(spliceOnDesc, flag(r.On))
	for why, n := range r.Fallbacks {
		ch <- counter(directFallbackDesc, float64(n), why)
	}
	for _, p := range r.Pairs {
		ch <- counter(directOpenedDesc, float64(p.Opened), p.Workload, p.Service)
		ch <- counter(directClosedDesc, float64(p.Closed), p.Workload, p.Service)
		ch <- counter(directSplicedDesc, float64(p.Spliced), p.Workload, p.Service)
		ch <- counter(directBytesDesc, float64(p.Sent), p.Workload, p.Service, "sent")
		ch <- counter(directBytesDesc, float64(p.Received), p.Workload, p.Service, "received")
		ch <- counter(directRedirectDesc, float64(p.Redirected), p.Workload, p.Service)
	}
}

func collectHops(ch chan<- prometheus.Metric, r *HopReading) {
	ch <- gauge(hopOnDesc, flag(r.On))
	ch <- counter(hopSplicedDesc, float64(r.Spliced))
	ch <- counter(hopLeftDesc, float64(r.Left))
	ch <- counter(hopBytesDesc, float64(r.FromApplications), "application")
	ch <- counter(hopBytesDesc, float64(r.FromProxy), "proxy")
	for why, n := range r.Fallbacks {
		ch <- counter(hopFallbackDesc, float64(n), why)
	}
}

// since is zero for what never happened.
func (c readingCollector) since(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return c.now().Sub(t).Seconds()
}

func counter(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func gauge(d *prometheus.Desc, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func formatInt(n int) string { return strconv.Itoa(n) }
