// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Direction is a connection's direction as its workload on this node sees it.
type Direction string

// The directions.
const (
	Outbound Direction = "outbound"
	Inbound  Direction = "inbound"
)

// Path is the way that a connection takes.
type Path string

// The paths.
const (
	PathDirect      Path = "direct"      // between two workloads of this node, through the proxy
	PathSplice      Path = "splice"      // between two workloads of this node, in the kernel
	PathLocal       Path = "local"       // between two workloads of this node, by TCP
	PathHBONE       Path = "hbone"       // in an HTTP/2 CONNECT tunnel
	PathMTLS        Path = "mtls"        // in a TLS connection of its own
	PathPlaintext   Path = "plaintext"   // inbound without a tunnel
	PathPassthrough Path = "passthrough" // to something outside the mesh
)

// Record is what is known about a connection. Its fields are settled when the
// connection opens; empty means unknown.
type Record struct {
	Direction Direction
	Path      Path
	// Source and Destination are workloads, by name.
	Source, Destination string
	// SourceIdentity and DestinationIdentity are SPIFFE IDs: the source's
	// own or proven one, and the one that the endpoint proved.
	SourceIdentity, DestinationIdentity string
	// Service is what was dialled.
	Service string
	// Client is the true address of the source, Dialled what it connected
	// to, Endpoint where that led.
	Client, Dialled, Endpoint netip.AddrPort
	// Policy is the policy that decided; empty means the default.
	Policy string
}

// Key returns the label set that the connection counts under.
func (r *Record) Key() Key {
	return Key{
		Direction: r.Direction, Path: r.Path,
		Source: r.Source, Destination: r.Destination, Service: r.Service,
	}
}

// logAttrs are the access log's fields that come from the record alone; the
// unknown ones are left out.
func (r *Record) logAttrs(attrs []slog.Attr) []slog.Attr {
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	address := func(key string, a netip.AddrPort) {
		if a.IsValid() {
			attrs = append(attrs, slog.String(key, a.String()))
		}
	}
	add("direction", string(r.Direction))
	add("path", string(r.Path))
	add("source", r.Source)
	add("source_identity", r.SourceIdentity)
	add("destination", r.Destination)
	add("destination_identity", r.DestinationIdentity)
	add("service", r.Service)
	address("client", r.Client)
	address("dialled", r.Dialled)
	address("endpoint", r.Endpoint)
	add("policy", r.Policy)
	return attrs
}

// Entry is one line of the access log: a connection that ended, one that was
// refused, or one that would be.
type Entry struct {
	Record
	Time     time.Time
	Refused  bool
	Audited  bool // it would be refused were policy not audited
	Reason   reason.Reason
	Detail   string // what the reason's error said
	Sent     uint64 // bytes from source to destination
	Received uint64 // bytes back
	Duration time.Duration
	// Suppressed is how many refusals of the same kind were not written
	// since the last one that was.
	Suppressed uint64
}

// logRecord renders the entry for a slog handler.
func (e *Entry) logRecord() slog.Record {
	level, message := slog.LevelInfo, "connection closed"
	switch {
	case e.Refused:
		level, message = slog.LevelWarn, "connection refused"
	case e.Audited:
		level, message = slog.LevelWarn, "connection would be refused, were policy not audited"
	}
	line := slog.NewRecord(e.Time, level, message, 0)
	attrs := e.logAttrs(make([]slog.Attr, 0, 20))
	if !e.Refused && !e.Audited {
		attrs = append(attrs,
			slog.Uint64("sent", e.Sent), slog.Uint64("received", e.Received),
			slog.Duration("duration", e.Duration))
	}
	if e.Reason != reason.None {
		attrs = append(attrs, slog.String("reason", e.Reason.String()))
	}
	if e.Detail != "" {
		attrs = append(attrs, slog.String("detail", e.Detail))
	}
	if e.Suppressed > 0 {
		attrs = append(attrs, slog.Uint64("suppressed", e.Suppressed))
	}
	line.AddAttrs(attrs...)
	return line
}
