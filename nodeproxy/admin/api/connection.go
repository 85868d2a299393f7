// SPDX-License-Identifier: Apache-2.0

package api

import (
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Connection is a connection that the node carries, or refused.
type Connection struct {
	ID                  uint64    `json:"id,omitempty"`
	Direction           string    `json:"direction"`
	Path                string    `json:"path,omitempty"`
	Source              string    `json:"source,omitempty"`
	SourceIdentity      string    `json:"sourceIdentity,omitempty"`
	Destination         string    `json:"destination,omitempty"`
	DestinationIdentity string    `json:"destinationIdentity,omitempty"`
	Service             string    `json:"service,omitempty"`
	Client              string    `json:"client,omitempty"`
	Dialled             string    `json:"dialled,omitempty"`
	Endpoint            string    `json:"endpoint,omitempty"`
	Policy              string    `json:"policy,omitempty"`
	Opened              time.Time `json:"opened"`
	Connected           bool      `json:"connected"`
	Sent                uint64    `json:"sentBytes"`
	Received            uint64    `json:"receivedBytes"`
}

// ConnectionFilter chooses connections; what is empty matches all.
type ConnectionFilter struct {
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	Service     string `json:"service,omitempty"`
	Path        string `json:"path,omitempty"`
	Direction   string `json:"direction,omitempty"`
	// Limit bounds the answer; 0 means the server's limit. A watch has none.
	Limit int `json:"limit,omitempty"`
}

// Match reports whether the filter chooses the connection.
func (f *ConnectionFilter) Match(c *Connection) bool {
	for _, field := range [...][2]string{
		{f.Source, c.Source},
		{f.Destination, c.Destination},
		{f.Service, c.Service},
		{f.Path, c.Path},
		{f.Direction, c.Direction},
	} {
		if field[0] != "" && field[0] != field[1] {
			return false
		}
	}
	return true
}

// Connections is the answer to a question for what is open.
type Connections struct {
	Connections []Connection `json:"connections"`
	// Total is how many the filter chose, also beyond the limit.
	Total int `json:"total"`
}

// The kinds of connection events.
const (
	EventOpened  = "opened"
	EventClosed  = "closed"
	EventRefused = "refused"
)

// ConnectionEvent is something that happened to a connection.
type ConnectionEvent struct {
	Event      string        `json:"event"`
	Time       time.Time     `json:"time"`
	Connection Connection    `json:"connection,omitzero"`
	Reason     reason.Reason `json:"reason,omitempty"`
	Detail     string        `json:"detail,omitempty"`
	// Lost is how many events are missing before this one.
	Lost uint64 `json:"lost,omitempty"`
}
