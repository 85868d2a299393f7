// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"encoding/json"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func TestConnectionFilter(t *testing.T) {
	c := api.Connection{Source: "front", Destination: "web-1", Service: "web", Path: "hbone", Direction: "outbound"}
	for _, test := range []struct {
		name   string
		filter api.ConnectionFilter
		want   bool
	}{
		{"empty", api.ConnectionFilter{}, true},
		{"source", api.ConnectionFilter{Source: "front"}, true},
		{"all", api.ConnectionFilter{Source: "front", Destination: "web-1", Service: "web", Path: "hbone", Direction: "outbound"}, true},
		{"another source", api.ConnectionFilter{Source: "back", Service: "web"}, false},
		{"another path", api.ConnectionFilter{Path: "direct"}, false},
		{"no part of a name", api.ConnectionFilter{Service: "we"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.filter.Match(&c); got != test.want {
				t.Errorf("Match = %v", got)
			}
		})
	}
}

func TestEventJSON(t *testing.T) {
	text, err := json.Marshal(api.ConnectionEvent{Event: api.EventOpened, Lost: 3})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"event":"opened","time":"0001-01-01T00:00:00Z","lost":3}`; string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
	var e api.ConnectionEvent
	if err := json.Unmarshal([]byte(`{"event":"refused","reason":"no_flow"}`), &e); err != nil || e.Reason != reason.NoFlow {
		t.Errorf("got %+v, %v", e, err)
	}
}
