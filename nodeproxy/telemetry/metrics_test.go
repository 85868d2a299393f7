// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// clock is a time that moves when a test says so.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func record(source, destination string) Record {
	return Record{Direction: Outbound, Path: PathHBONE, Source: source, Destination: destination, Service: destination}
}

// scrape returns the lines of the metrics whose names begin with prefix.
func scrape(t *testing.T, m *Metrics, prefix string) []string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("scrape: %d %s", answer.Code, answer.Body)
	}
	var lines []string
	for line := range strings.Lines(answer.Body.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func expect(t *testing.T, m *Metrics, prefix string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, scrape(t, m, prefix)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", prefix, diff)
	}
}

func TestConnectionMetrics(t *testing.T) {
	now := newClock()
	m := New(Options{Version: "v1", Now: now.Now})
	first, second := m.Shard(), m.Shard() // one series over both
	var a, b Connection
	first.Open(&a, record("front", "web"))
	second.Open(&b, record("front", "web"))
	a.Sent(100)
	b.Sent(10)
	a.Received(7)
	now.advance(3 * time.Millisecond)
	a.Connected()
	a.Connected() // counts once
	a.Close(reason.TunnelReset, "")
	a.Close(reason.None, "") // not at all

	labels := `{destination="web",direction="outbound",path="hbone",service="web",source="front"}`
	expect(t, m, "meshproxy_connections_", "meshproxy_connections_active"+labels+" 1",
		"meshproxy_connections_closed_total"+labels+" 1",
		`meshproxy_connections_ended_early_total{direction="outbound",reason="tunnel_reset"} 1`,
		"meshproxy_connections_opened_total"+labels+" 2")
	expect(t, m, "meshproxy_sent_bytes_total", "meshproxy_sent_bytes_total"+labels+" 110")
	expect(t, m, "meshproxy_received_bytes_total", "meshproxy_received_bytes_total"+labels+" 7")
	expect(t, m, "meshproxy_connect_duration_seconds_sum", "meshproxy_connect_duration_seconds_sum"+labels+" 0.003")
	expect(t, m, `meshproxy_connect_duration_seconds_bucket{destination="web",direction="outbound",path="hbone",service="web",source="front",le="0.00`,
		strings.Replace("meshproxy_connect_duration_seconds_bucket"+labels+" 0", "}", `,le="0.0005"}`, 1),
		strings.Replace("meshproxy_connect_duration_seconds_bucket"+labels+" 0", "}", `,le="0.001"}`, 1),
		strings.Replace("meshproxy_connect_duration_seconds_bucket"+labels+" 0", "}", `,le="0.0025"}`, 1),
		strings.Replace("meshproxy_connect_duration_seconds_bucket"+labels+" 1", "}", `,le="0.005"}`, 1))
	expect(t, m, "meshproxy_build_info", `meshproxy_build_info{version="v1"} 1`)
	b.Close(reason.None, "")
	if problems, err := testutil.GatherAndLint(m.Gatherer()); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

func TestHistogramBounds(t *testing.T) {
	var h histogram
	h.observe(0)
	h.observe(500 * time.Microsecond) // bounds belong to their bucket
	h.observe(10 * time.Second)
	h.observe(time.Hour)
	var c cumulative
	h.addTo(&c)
	count, _, buckets := c.prometheus()
	if count != 4 || buckets[0.0005] != 2 || buckets[5] != 2 || buckets[10] != 3 {
		t.Errorf("count %d, buckets %v", count, buckets)
	}
}

func TestSeriesAreBounded(t *testing.T) {
	m := New(Options{MaxSeries: 3})
	s := m.Shard()
	var open []*Connection
	for i := range 10 {
		c := new(Connection)
		s.Open(c, record(fmt.Sprint("w", i), "web"))
		c.Sent(1)
		open = append(open, c)
		m.Refused(record(fmt.Sprint("w", i), "web"), reason.PolicyDenied, "")
	}
	if n := len(scrape(t, m, "meshproxy_connections_opened_total{")); n != 4 {
		t.Errorf("%d series, want 3 and the overflow", n)
	}
	other := `{destination="other",direction="outbound",path="hbone",service="other",source="other"} 7`
	expect(t, m, `meshproxy_sent_bytes_total{destination="other"`, "meshproxy_sent_bytes_total"+other)
	expect(t, m, "meshproxy_label_overflows_total", "meshproxy_label_overflows_total 7")
	expect(t, m, `meshproxy_refusals_total{destination="other"`,
		`meshproxy_refusals_total{destination="other",direction="outbound",reason="policy_denied",service="other",source="other"} 7`)
	for _, c := range open {
		c.Close(reason.None, "")
	}
}

func TestIdleSeriesAreEvicted(t *testing.T) {
	now := newClock()
	m := New(Options{MaxSeries: 2, Now: now.Now})
	first, second := m.Shard(), m.Shard()
	var kept, gone Connection
	first.Open(&kept, record("a", "b"))
	second.Open(&gone, record("a", "b"))
	gone.Close(reason.None, "")
	first.Open(&gone, record("c", "d"))
	gone.Close(reason.None, "")
	opened := func() int { return len(scrape(t, m, "meshproxy_connections_opened_total{")) }
	if n := opened(); n != 2 {
		t.Fatalf("%d series", n)
	}
	now.advance(idleSeries - time.Second)
	if n := opened(); n != 2 {
		t.Errorf("%d series before the time is over", n)
	}
	now.advance(time.Second)
	labels := `{destination="b",direction="outbound",path="hbone",service="b",source="a"}`
	// a→b is open on one shard, so the other shard's part of it stays too.
	expect(t, m, "meshproxy_connections_opened_total{", "meshproxy_connections_opened_total"+labels+" 2")
	kept.Close(reason.None, "")
	// There is room again for one that was never seen.
	first.Open(&kept, record("e", "f"))
	if n := opened(); n != 2 {
		t.Errorf("%d series after the eviction", n)
	}
	kept.Close(reason.None, "")
}

func TestRefusals(t *testing.T) {
	m := New(Options{})
	in := Record{Direction: Inbound, Destination: "web", Service: "web"}
	m.Refused(in, reason.PlaintextRefused, "")
	m.Refused(in, reason.PlaintextRefused, "")
	m.Refused(record("a", "b"), reason.ConnectTimeout, "")
	m.Refused(record("c", "b"), reason.ConnectTimeout, "")
	m.Refused(in, reason.ConnectTimeout, "")
	want := []RefusalCount{
		{Inbound, reason.PlaintextRefused, 2}, {Inbound, reason.ConnectTimeout, 1}, {Outbound, reason.ConnectTimeout, 2},
	}
	if diff := cmp.Diff(want, m.Refusals()); diff != "" {
		t.Error(diff)
	}
}

func TestHandshakesAndDNS(t *testing.T) {
	m := New(Options{})
	m.Handshakes.Done(Server, reason.TLSExpired, false, time.Second)
	m.Handshakes.Done(Client, reason.None, false, 2*time.Millisecond)
	m.Handshakes.Done(Client, reason.None, true, time.Millisecond)
	expect(t, m, "meshproxy_handshakes_total",
		`meshproxy_handshakes_total{reason="none",result="ok",resumed="false",role="client"} 1`,
		`meshproxy_handshakes_total{reason="none",result="ok",resumed="false",role="server"} 0`,
		`meshproxy_handshakes_total{reason="none",result="ok",resumed="true",role="client"} 1`,
		`meshproxy_handshakes_total{reason="none",result="ok",resumed="true",role="server"} 0`,
		`meshproxy_handshakes_total{reason="tls_expired",result="failed",resumed="false",role="server"} 1`)
	expect(t, m, "meshproxy_handshake_duration_seconds_count",
		`meshproxy_handshake_duration_seconds_count{role="client"} 2`,
		`meshproxy_handshake_duration_seconds_count{role="server"} 0`)
	m.DNS.Query(DNSMesh)
	m.DNS.Query("nonsense")
	m.DNS.Forwarded(time.Millisecond)
	if lines := scrape(t, m, "meshproxy_dns_queries_total"); len(lines) != len(dnsResults) {
		t.Errorf("DNS results: %q", lines)
	}
	expect(t, m, `meshproxy_dns_queries_total{result="failed"`, `meshproxy_dns_queries_total{result="failed"} 1`)
}

func TestReadings(t *testing.T) {
	now := newClock()
	built := now.Now().Add(-90 * time.Second)
	capture := CaptureReading{
		Captured: 5, Passthrough: 6, Refused: map[string]uint64{"proxy_down": 2}, Flows: 3, HeartbeatAge: 250 * time.Millisecond,
		Destinations: []CaptureDestination{{"front", "web", 4}},
	}
	var captureErr error
	m := New(Options{Now: now.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Read: Readings{
		Snapshot: func() SnapshotReading { return SnapshotReading{Version: 7, Built: built, Services: 2} },
		Sources: func() []SourceReading {
			return []SourceReading{{Name: "static", Ready: true, Since: built}, {Name: "consul"}}
		},
		Pool:    func() []PoolReading { return []PoolReading{{"hbone", Client, 2, 9, 1}} },
		Loops:   func() []LoopReading { return []LoopReading{{1, 1000, 12, 20 * time.Millisecond}} },
		Leaves:  func() []LeafReading { return []LeafReading{{"front", time.Unix(2000000000, 0)}} },
		Capture: func() (CaptureReading, error) { return capture, captureErr },
	}})
	for prefix, want := range map[string]string{
		"meshproxy_snapshot_version ":                      "7",
		"meshproxy_snapshot_age_seconds ":                  "90",
		`meshproxy_snapshot_objects{kind="service"} `:      "2",
		`meshproxy_source_ready{source="static"} `:         "1",
		`meshproxy_source_ready{source="consul"} `:         "0",
		`meshproxy_source_state_age_seconds{source="cons`:  `ul"} 0`,
		`meshproxy_tunnel_streams{role="client",transpo`:   `rt="hbone"} 9`,
		`meshproxy_loop_turns_total{loop="1"} `:            "1000",
		`meshproxy_loop_lag_seconds{loop="1"} `:            "0.02",
		"meshproxy_leaf_expiry_timestamp_seconds{workload": `="front"} 2e+09`,
		"meshproxy_capture_connections_total ":             "5",
		`meshproxy_capture_refusals_total{reason="proxy_`:  `down"} 2`,
		"meshproxy_capture_heartbeat_age_seconds ":         "0.25",
		"meshproxy_capture_destination_connections_total{": `service="web",source="front"} 4`,
		"meshproxy_capture_up ":                            "1",
	} {
		expect(t, m, prefix, prefix+want)
	}
	captureErr = errors.New("gone")
	expect(t, m, "meshproxy_capture", "meshproxy_capture_up 0")
}

func TestPairFillsCacheLines(t *testing.T) {
	if size := unsafe.Sizeof(Pair{}); size%64 != 0 {
		t.Errorf("a Pair has %d bytes", size)
	}
}

// TestConcurrently is for the race detector: loops, scrapes, lists and
// watchers at once.
func TestConcurrently(t *testing.T) {
	now := newClock()
	m := New(Options{MaxSeries: 8, Now: now.Now})
	var loops, readers sync.WaitGroup
	quit := make(chan struct{})
	for range 4 {
		loops.Go(func() {
			s := m.Shard()
			var c Connection
			for i := range 2000 {
				s.Open(&c, record(fmt.Sprint(i%12), "web"))
				c.Sent(1)
				c.Connected()
				c.Close(reason.None, "")
				m.Refused(record(fmt.Sprint(i%12), "web"), reason.NoFlow, "")
			}
		})
	}
	readers.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
				now.advance(idleSeries)
				_, _ = m.Gatherer().Gather()
				m.Connections(nil)
				_, _, cancel := m.Watch()
				cancel()
			}
		}
	})
	loops.Wait()
	close(quit)
	readers.Wait()
	var opened, closed uint64
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.series {
		opened += s.totals().opened
		closed += s.totals().closed
	}
	if opened != closed {
		t.Errorf("opened %d, closed %d", opened, closed)
	}
}

func BenchmarkTraffic(b *testing.B) {
	s := New(Options{}).Shard()
	var c Connection
	s.Open(&c, record("front", "web"))
	defer c.Close(reason.None, "")
	b.ReportAllocs()
	for b.Loop() {
		c.Sent(16384)
		c.Received(64)
	}
}

func BenchmarkOpenClose(b *testing.B) {
	s := New(Options{}).Shard()
	r := record("front", "web")
	var c Connection
	b.ReportAllocs()
	for b.Loop() {
		s.Open(&c, r)
		c.Connected()
		c.Close(reason.None, "")
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	s := New(Options{}).Shard()
	r := record("front", "web")
	var c Connection
	if n := testing.AllocsPerRun(100, func() {
		s.Open(&c, r)
		c.Sent(1)
		c.Received(1)
		c.Connected()
		c.Close(reason.None, "")
	}); n != 0 {
		t.Errorf("%v allocations per connection", n)
	}
}
