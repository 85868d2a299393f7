// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func openConnection(s *telemetry.Shard, source, service string) *telemetry.Connection {
	c := new(telemetry.Connection)
	s.Open(c, telemetry.Record{
		Direction: telemetry.Outbound, Path: telemetry.PathHBONE, Source: source, Service: service,
		Client: netip.MustParseAddrPort("10.0.0.1:5000"),
	})
	return c
}

func TestConnections(t *testing.T) {
	f := start(t)
	s := f.metrics.Shard()
	openConnection(s, "front", "web").Sent(7)
	openConnection(s, "front", "db")
	openConnection(s, "cron", "web")
	all, err := f.client.Connections(t.Context(), api.ConnectionFilter{})
	check(t, err)
	if all.Total != 3 || len(all.Connections) != 3 {
		t.Fatalf("connections: %+v", all)
	}
	want := api.Connection{
		ID: 1, Direction: "outbound", Path: "hbone", Source: "front", Service: "web", Client: "10.0.0.1:5000",
		Opened: all.Connections[0].Opened, Sent: 7,
	}
	if diff := cmp.Diff(want, all.Connections[0]); diff != "" {
		t.Error(diff)
	}
	some, err := f.client.Connections(t.Context(), api.ConnectionFilter{Service: "web", Limit: 1})
	check(t, err)
	if some.Total != 2 || len(some.Connections) != 1 {
		t.Errorf("filtered: %+v", some)
	}
}

var errEnough = errors.New("enough")

func TestWatch(t *testing.T) {
	const readTimeout = 2 * time.Second // enough for a request on a busy machine
	f := startReading(t, readTimeout)
	s := f.metrics.Shard()
	seen := make(chan struct{})
	var got []string
	// The watch outlives the server's read timeout: the connection is only
	// closed after it has passed. Connections open until the first is seen,
	// as the watch begins at a moment that the test can't know.
	go func() {
		for {
			select {
			case <-seen:
				time.AfterFunc(readTimeout+readTimeout/4, func() {
					f.metrics.Refused(telemetry.Record{Service: "web"}, reason.PolicyDenied, "late")
				})
				return
			default:
				openConnection(s, "front", "db").Close(reason.None, "")
				openConnection(s, "front", "web").Close(reason.Reset, "x")
			}
		}
	}()
	err := f.client.WatchConnections(t.Context(), api.ConnectionFilter{Service: "web"}, func(e api.ConnectionEvent) error {
		if e.Connection.Service != "web" {
			t.Errorf("event of %q", e.Connection.Service)
		}
		if len(got) == 0 {
			close(seen)
		}
		if len(got) == 0 || e.Event == api.EventRefused {
			got = append(got, e.Event)
		}
		if e.Event == api.EventRefused {
			if e.Reason != reason.PolicyDenied || e.Detail != "late" {
				t.Errorf("refusal: %+v", e)
			}
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || len(got) != 2 {
		t.Errorf("events %v, error %v", got, err)
	}
}

func TestWatchEnds(t *testing.T) {
	f := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	none := func(api.ConnectionEvent) error { return nil }
	if err := f.client.WatchConnections(ctx, api.ConnectionFilter{}, none); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	done := make(chan error)
	go func() { done <- f.client.WatchConnections(t.Context(), api.ConnectionFilter{}, none) }()
	f.Close() // doesn't wait for watchers
	if err := <-done; err == nil {
		t.Error("the watch of a node that stopped ended well")
	}
}
