// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"log/slog"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/loop"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/h2"
	"github.com/meshproxy/meshproxy/nodeproxy/tunnel/record"
)

// recordSize is the plaintext of a full TLS record.
const recordSize = record.MaxPayload

// recordOverhead is what TLS 1.3 adds to it: header, content type and tag.
const recordOverhead = record.Overhead

// connWindow lets sixteen streams whose readers are stuck hold their whole
// windows before the connection's other streams feel it (ztunnel: four). What
// they hold is bounded per workload where it is kept.
const connWindow = 16 * h2.DefaultStreamWindow

// lookAround is how often a carrier looks at each of its connections: the
// resolution of PING, idle and age, unless they are shorter.
const lookAround = time.Second

// Options configures what all connections of a carrier have in common. The
// zero value is usable.
type Options struct {
	Logger *slog.Logger
	// PingInterval and PingTimeout find peers that are gone without a word.
	// 0 means 10 s and 20 s.
	PingInterval, PingTimeout time.Duration
	// ClientIdle releases a pool connection without streams; 0 means 5 min.
	ClientIdle time.Duration
	// ServerIdle drains an accepted connection without streams, when its client
	// doesn't do so itself; 0 means 15 min.
	ServerIdle time.Duration
	// DrainTimeout bounds how long a draining connection waits for its streams;
	// 0 means for ever (what is open may finish, however long it takes).
	DrainTimeout time.Duration
	Lifetime     Lifetime
	// HTTP2 sets windows and limits; its Now and Batches are the carrier's.
	HTTP2 h2.Config
	// Clock tells the time of day, for certificates; nil means time.Now.
	Clock func() time.Time
}

// Lifetime is the policy for connections that have become old.
type Lifetime struct {
	// MaxAge drains a connection of that age: its streams go on, new ones take
	// another connection with fresh leaves. 0 means no limit.
	MaxAge time.Duration
	// CloseExpired is for connections one of whose leaves has expired. They
	// always drain; with CloseExpired they are closed Grace after the expiry,
	// streams or not.
	CloseExpired bool
	Grace        time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.PingInterval, 10 * time.Second},
		{&o.PingTimeout, 20 * time.Second},
		{&o.ClientIdle, 5 * time.Minute},
		{&o.ServerIdle, 15 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
}

// Carrier is what one loop needs to carry tunnels, as a client and as a
// server: buffers, the settings of HTTP/2, and the look around that finds dead,
// idle and old connections. It belongs to its loop.
type Carrier struct {
	loop    *loop.Loop
	options Options
	http2   h2.Config
	out     *loop.Pool
	// partials are for what a read left of a record.
	partials *loop.Pool
	conns    map[*conn]struct{}
	lineOut  *loop.Pool
	lines    map[*Line]struct{}
	settles  []loop.Flusher
}

// NewCarrier prepares l. Call it before l runs, or on l.
func NewCarrier(l *loop.Loop, o Options) *Carrier {
	o.setDefaults()
	c := &Carrier{loop: l, options: o, http2: o.HTTP2, conns: make(map[*conn]struct{}), lines: make(map[*Line]struct{})}
	slots := o.HTTP2.Slots
	if slots == 0 {
		slots = h2.DefaultSlots
	}
	// Two more than one Reserve fills: control frames, and what a turn begins with.
	c.out = l.NewPool((slots + 2) * (recordSize + recordOverhead))
	c.partials = l.NewPool(record.MaxRecord)
	// One more record than a Write fills: an alert, the answer to a KeyUpdate.
	c.lineOut = l.NewPool(LineWrite + recordSize + (LineWrite/recordSize+1)*lineRecordOverhead)
	if c.http2.ConnWindow == 0 {
		c.http2.ConnWindow = connWindow
	}
	c.http2.Now = func() int64 { return int64(l.Now()) }
	c.http2.Batches = h2.NewBatchPool()
	l.Every(min(lookAround, o.PingInterval/4, o.PingTimeout/4, o.ClientIdle/4), c.lookAround)
	return c
}

// Loop returns the loop that the carrier belongs to.
func (c *Carrier) Loop() *loop.Loop { return c.loop }

// BeforeReuse calls f.Flush once, before the memory that Sink.Data was given in
// this call chain is used again: a sink may gather several pieces of payload
// and pass them on with one writev.
func (c *Carrier) BeforeReuse(f loop.Flusher) { c.settles = append(c.settles, f) }

func (c *Carrier) settle() {
	for i := 0; i < len(c.settles); i++ {
		f := c.settles[i]
		c.settles[i] = nil
		f.Flush()
	}
	c.settles = c.settles[:0]
}

func (c *Carrier) lookAround() {
	c.http2.Batches.Trim()
	now, day := c.loop.Now(), c.options.Clock()
	for conn := range c.conns {
		conn.lookAround(now, day)
		conn.pushNow()
	}
	for line := range c.lines {
		line.lookAround(now, day)
	}
}
