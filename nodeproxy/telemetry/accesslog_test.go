// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

var cmpAddrs = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func full() Record {
	return Record{
		Direction: Outbound, Path: PathHBONE, Source: "front", Destination: "web", Service: "web",
		SourceIdentity: "spiffe://mesh/ns/default/sa/front", DestinationIdentity: "spiffe://mesh/ns/default/sa/web",
		Client: netip.MustParseAddrPort("10.0.0.1:5000"), Dialled: netip.MustParseAddrPort("240.240.0.1:80"),
		Endpoint: netip.MustParseAddrPort("10.0.0.2:8080"), Policy: "allow-front",
	}
}

func TestAccessLogText(t *testing.T) {
	now := newClock()
	var out bytes.Buffer
	l, err := NewAccessLog(&out, AccessOptions{Format: FormatText, All: true})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l, Now: now.Now})
	var c Connection
	m.Shard().Open(&c, full())
	c.Sent(10)
	c.Received(20)
	now.advance(1500 * time.Millisecond)
	c.Close(reason.None, "")
	m.Refused(Record{Direction: Inbound, Client: netip.MustParseAddrPort("10.0.0.9:1")}, reason.PlaintextRefused, "strict")
	l.Close()
	want := `time=2026-01-02T03:04:06.500Z level=INFO msg="connection closed" direction=outbound path=hbone source=front source_identity=spiffe://mesh/ns/default/sa/front destination=web destination_identity=spiffe://mesh/ns/default/sa/web service=web client=10.0.0.1:5000 dialled=240.240.0.1:80 endpoint=10.0.0.2:8080 policy=allow-front sent=10 received=20 duration=1.5s
time=2026-01-02T03:04:06.500Z level=WARN msg="connection refused" direction=inbound client=10.0.0.9:1 reason=plaintext_refused detail=strict
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	expect(t, m, "meshproxy_access_log_entries_total", "meshproxy_access_log_entries_total 2")
}

func TestAccessLogJSON(t *testing.T) {
	var out bytes.Buffer
	l, err := NewAccessLog(&out, AccessOptions{Format: FormatJSON, All: true})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l})
	var c Connection
	m.Shard().Open(&c, full())
	c.Close(reason.IdleTimeout, "")
	l.Close()
	l.Close() // may be repeated
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line["reason"] != "idle_timeout" || line["source"] != "front" || line["sent"] != float64(0) {
		t.Errorf("line: %v", line)
	}
}

func TestAccessLogOfProblems(t *testing.T) {
	now := newClock()
	var out bytes.Buffer
	l, err := NewAccessLog(&out, AccessOptions{Format: FormatText})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l, Now: now.Now})
	s := m.Shard()
	for range 100 {
		var fine, broken Connection
		s.Open(&fine, full())
		fine.Close(reason.None, "")
		s.Open(&broken, full())
		broken.Close(reason.TunnelReset, "")
	}
	l.Close()
	text := out.String()
	if n := strings.Count(text, `msg="connection closed"`); n != refusalBurst || strings.Count(text, "reason=tunnel_reset") != n+1 ||
		!strings.Contains(text, "suppressed=90") {
		t.Errorf("%d lines:\n%s", n, text)
	}
}

func TestLogFormat(t *testing.T) {
	if _, err := NewAccessLog(io.Discard, AccessOptions{Format: "xml"}); !errors.Is(err, ErrFormat) {
		t.Errorf("error: %v", err)
	}
	var out bytes.Buffer
	level := new(slog.LevelVar)
	h, err := NewLogHandler(&out, FormatText, level)
	if err != nil {
		t.Fatal(err)
	}
	slog.New(h).Debug("unseen")
	level.Set(slog.LevelDebug)
	slog.New(h).Debug("seen")
	if strings.Contains(out.String(), "unseen") || !strings.Contains(out.String(), "seen") {
		t.Errorf("log: %q", out.String())
	}
}

func TestRefusalsAreLimited(t *testing.T) {
	now := newClock()
	var out bytes.Buffer
	l, err := NewAccessLog(&out, AccessOptions{Format: FormatText, All: true})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l, Now: now.Now})
	for range 100 {
		m.Refused(record("noisy", "web"), reason.PolicyDenied, "")
	}
	m.Refused(record("noisy", "web"), reason.ConnectTimeout, "another reason")
	m.Refused(record("quiet", "web"), reason.PolicyDenied, "another workload")
	now.advance(time.Second)
	m.Refused(record("noisy", "web"), reason.PolicyDenied, "after a second")
	m.Refused(record("noisy", "web"), reason.PolicyDenied, "and one more")
	l.Close()
	text := out.String()
	if n := strings.Count(text, "msg=\"connection refused\""); n != refusalBurst+3 {
		t.Errorf("%d lines", n)
	}
	for _, want := range []string{
		"another reason", "another workload", `detail="after a second" suppressed=90`,
		`msg="entries suppressed" direction=outbound source=noisy reason=policy_denied suppressed=1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	expect(t, m, "meshproxy_access_log_suppressed_total", "meshproxy_access_log_suppressed_total 91")
	expect(t, m, "meshproxy_refusals_total{destination=\"web\",direction=\"outbound\",reason=\"policy_denied\",service=\"web\",source=\"noisy\"",
		`meshproxy_refusals_total{destination="web",direction="outbound",reason="policy_denied",service="web",source="noisy"} 102`)
}

func TestRefusalKindsAreBounded(t *testing.T) {
	l := refusalLimits{kinds: map[refusalKind]*bucket{}}
	now := newClock()
	entry := func(i int) *Entry {
		return &Entry{Record: record(fmt.Sprint(i), "web"), Time: now.Now(), Reason: reason.NoFlow}
	}
	written := 0
	for i := range refusalKinds + 100 {
		if ok, _ := l.allow(entry(i)); ok {
			written++
		}
	}
	if len(l.kinds) != refusalKinds+1 || written != refusalKinds+refusalBurst {
		t.Errorf("%d kinds, %d written", len(l.kinds), written)
	}
	if s := l.takeSuppressed(now.Now()); len(s) != 1 || s[0].count != 100-refusalBurst || s[0].kind.source != Other {
		t.Errorf("suppressed: %+v", s)
	}
	l.takeSuppressed(now.Now().Add(time.Minute))
	if len(l.kinds) != 0 {
		t.Errorf("%d kinds are kept", len(l.kinds))
	}
}

// stuckWriter is a disk that hangs.
type stuckWriter struct {
	entered chan struct{}
	release chan struct{}
}

func (w stuckWriter) Write(p []byte) (int, error) {
	select {
	case w.entered <- struct{}{}:
	default:
	}
	<-w.release
	return len(p), nil
}

func TestStuckWriterHoldsNobodyUp(t *testing.T) {
	w := stuckWriter{entered: make(chan struct{}, 1), release: make(chan struct{})}
	l, err := NewAccessLog(w, AccessOptions{Format: FormatText, All: true})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l})
	s := m.Shard()
	var c Connection
	s.Open(&c, full())
	c.Close(reason.None, "")
	<-w.entered // the writer hangs in the first line
	for range accessQueue + 50 {
		s.Open(&c, full())
		c.Close(reason.None, "")
	}
	if n := l.dropped.Load(); n != 50 {
		t.Errorf("dropped %d", n)
	}
	close(w.release)
	l.Close()
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestBrokenWriterIsCounted(t *testing.T) {
	l, err := NewAccessLog(brokenWriter{}, AccessOptions{Format: FormatText})
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{AccessLog: l})
	m.Refused(full(), reason.NoFlow, "")
	l.Close()
	expect(t, m, "meshproxy_access_log_dropped_total", "meshproxy_access_log_dropped_total 1")
}
