// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
)

const (
	// maxConnections bounds one answer: some 4 MB.
	maxConnections = 10_000
	// watchWriteTimeout is how long a watcher may leave an event unread.
	watchWriteTimeout = 10 * time.Second
	// watchKeepAlive is how often a quiet watch writes an empty line, to
	// notice that the watcher has gone.
	watchKeepAlive = 15 * time.Second
)

func listConnections(m *telemetry.Metrics) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		filter, err := parseFilter(r.URL.Query())
		if err != nil {
			writeJSON(w, http.StatusBadRequest, err)
			return
		}
		if filter.Limit <= 0 || filter.Limit > maxConnections {
			filter.Limit = maxConnections
		}
		answer := api.Connections{Connections: []api.Connection{}}
		for _, v := range m.Connections(nil) {
			c := connectionOf(&v)
			if !filter.Match(&c) {
				continue
			}
			if answer.Total++; answer.Total <= filter.Limit {
				answer.Connections = append(answer.Connections, c)
			}
		}
		writeJSON(w, http.StatusOK, answer)
	}
}

// watchConnections streams events, one JSON object a line, until the watcher
// or the node goes.
func watchConnections(m *telemetry.Metrics) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		filter, err := parseFilter(r.URL.Query())
		if err != nil {
			writeJSON(w, http.StatusBadRequest, err)
			return
		}
		events, dropped, cancel := m.Watch()
		defer cancel()
		s := &stream{w: w, control: http.NewResponseController(w)}
		w.Header().Set("Content-Type", "application/x-ndjson")
		if s.flush(); s.err != nil {
			return
		}
		keepAlive := time.NewTicker(watchKeepAlive)
		defer keepAlive.Stop()
		var lost uint64
		for s.err == nil {
			select {
			case <-r.Context().Done():
				return
			case <-keepAlive.C:
				s.line(nil)
			case e := <-events:
				event := eventOf(&e)
				if !filter.Match(&event.Connection) {
					continue
				}
				total := dropped()
				event.Lost, lost = total-lost, total
				s.line(event)
			}
		}
	}
}

// stream writes lines and keeps the first error.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	err     error
}

func (s *stream) line(v any) {
	s.err = s.control.SetWriteDeadline(time.Now().Add(watchWriteTimeout))
	if s.err == nil && v != nil {
		s.err = json.NewEncoder(s.w).Encode(v)
	} else if s.err == nil {
		_, s.err = s.w.Write([]byte("\n"))
	}
	s.flush()
}

func (s *stream) flush() {
	if s.err == nil {
		s.err = s.control.Flush()
	}
}

func parseFilter(q url.Values) (api.ConnectionFilter, *api.Error) {
	var f api.ConnectionFilter
	for key, values := range q {
		value := values[0]
		switch key {
		case "source":
			f.Source = value
		case "destination":
			f.Destination = value
		case "service":
			f.Service = value
		case "path":
			f.Path = value
		case "direction":
			f.Direction = value
		case "limit":
			limit, err := strconv.Atoi(value)
			if err != nil || limit < 0 {
				return f, &api.Error{Kind: api.KindInvalid, Message: fmt.Sprintf("limit %q: want a number", value)}
			}
			f.Limit = limit
		default:
			return f, &api.Error{
				Kind:    api.KindInvalid,
				Message: fmt.Sprintf("unknown filter %q: want source, destination, service, path, direction or limit", key),
			}
		}
	}
	return f, nil
}

func connectionOf(v *telemetry.View) api.Connection {
	return api.Connection{
		ID: v.ID, Direction: string(v.Direction), Path: string(v.Path),
		Source: v.Source, SourceIdentity: v.SourceIdentity,
		Destination: v.Destination, DestinationIdentity: v.DestinationIdentity,
		Service: v.Service, Policy: v.Policy,
		Client: address(v.Client), Dialled: address(v.Dialled), Endpoint: address(v.Endpoint),
		Opened: v.Opened, Connected: v.Connected, Sent: v.Sent, Received: v.Received,
	}
}

func eventOf(e *telemetry.Event) api.ConnectionEvent {
	return api.ConnectionEvent{
		Event: string(e.Kind), Time: e.Time, Connection: connectionOf(&e.Connection),
		Reason: e.Reason, Detail: e.Detail,
	}
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
