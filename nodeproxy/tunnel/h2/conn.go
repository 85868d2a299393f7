// SPDX-License-Identifier: Apache-2.0

package h2

import (
	"io"

	"golang.org/x/net/http2/hpack"
)

// Conn is one end of an HTTP/2 connection.
type Conn struct {
	cfg *Config
	ev  Events
	err error // why no frame is taken or sent any more

	client      bool
	gotSettings bool // the peer's first SETTINGS arrived
	gotAck      bool // the peer has applied ours
	gotPreface  bool // server: the client's preface is complete
	sentBlock   bool // a header block was sent
	dirty       bool // OnOutput was called since the last WriteTo
	drain       drainState
	drained     bool // OnDrained was called

	in input

	// Output.
	out          *Batch // nil while there is none
	reserved     int    // bytes that Reserve gave and Commit has not taken
	reservedWant int
	backlog      int // bytes of frames other than DATA since the last WriteTo
	waitHead     *Stream
	waitTail     *Stream
	waitCount    int

	// Flow control of the connection, RFC 9113 section 5.2.
	sendWindow int32
	recvWindow int32
	owed       uint32

	peer peerSettings

	streams  table
	closed   closedStreams
	nextID   uint32 // client: of the next stream
	lastPeer uint32 // server: highest id the client used
	accepted uint32 // server: last id of the final GOAWAY; streams beyond are ignored

	block   *headerBlock // while a header block is under way
	decoder *hpack.Decoder

	resets, provoked, control bucket
	updates                   uint16 // window updates that our DATA explains
}

// NewClient makes the client's end of a connection.
func NewClient(cfg *Config, ev Events) *Conn { return newConn(cfg, ev, true) }

// NewServer makes the server's end of a connection.
func NewServer(cfg *Config, ev Events) *Conn { return newConn(cfg, ev, false) }

func newConn(cfg *Config, ev Events, client bool) *Conn {
	cfg.setDefaults()
	c := &Conn{
		cfg: cfg, ev: ev, client: client, gotPreface: client, nextID: 1,
		sendWindow: minWindow, recvWindow: int32(cfg.ConnWindow), accepted: maxStreamID,
		peer: initialSettings,
	}
	return c
}

// Start queues what an end says first: the preface, its SETTINGS, and the
// connection's window. It is called once, before anything else.
func (c *Conn) Start() {
	if c.client {
		c.lend()
		c.out.raw(Preface)
	}
	c.sendSettings()
	if more := c.cfg.ConnWindow - minWindow; more > 0 {
		c.sendWindowUpdate(0, more)
	}
}

// Err is why the connection takes and sends no more, or nil.
func (c *Conn) Err() error { return c.err }

// Streams is the number of streams that are open.
func (c *Conn) Streams() int { return c.streams.count }

// Room is the number of streams that Open would allow now.
func (c *Conn) Room() int {
	if c.err != nil || c.Draining() || !c.client || c.nextID > maxStreamID {
		return 0
	}
	return max(0, int(min(c.peer.maxStreams, c.cfg.MaxStreams))-c.streams.count)
}

// Pending is the number of bytes that WriteTo would write.
func (c *Conn) Pending() int {
	if c.out == nil {
		return 0
	}
	return c.out.size()
}

// WriteTo hands the output to w, one Write per TLS record, gives the batch back,
// and lets the streams go on that waited for it. It must not be called while w
// cannot take it all: what waits here is bounded, what waits in w is not. What w
// gets has a byte of capacity behind it, where w may put TLS's content type.
func (c *Conn) WriteTo(w io.Writer) (n int64, err error) {
	if b := c.out; b != nil {
		c.out, c.dirty, c.backlog = nil, false, 0
		n, err = b.writeTo(w)
		c.cfg.Batches.put(b)
	}
	if err == nil {
		c.wake()
	}
	return n, err
}

// Open (client) asks for a tunnel. block is what ConnectBlock made, extra more
// fields for this stream alone, or nil. Data may be sent before the answer
// (RFC 9110 section 9.3.6 leaves the risk to the sender).
func (c *Conn) Open(sink Sink, block, extra *Block) (*Stream, error) {
	if err := c.mayOpen(block, extra); err != nil {
		return nil, err
	}
	s := c.newStream(c.nextID)
	s.sink = sink
	c.nextID += 2
	enc := append(c.startBlock(), block.enc...)
	if extra != nil {
		enc = append(enc, extra.enc...)
	}
	c.sendBlock(s.id, 0, enc)
	return s, nil
}

func (c *Conn) mayOpen(block, extra *Block) error {
	size := block.size
	if extra != nil {
		size += extra.size
	}
	switch {
	case !c.client:
		panic("h2: Open on a server")
	case c.err != nil:
		return ErrClosed
	case c.Draining() || c.nextID > maxStreamID:
		return ErrDraining
	case c.Room() == 0:
		return ErrStreamLimit
	case c.backlog > c.cfg.Limits.Backlog/2:
		return ErrBacklog
	case size > c.peer.maxHeaderList:
		return ErrHeaderList
	}
	return nil
}

func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{conn: c, id: id, sendWindow: c.peer.initialWindow, recvWindow: int32(c.cfg.StreamWindow)}
	c.streams.put(s)
	c.credit(1)
	return s
}

// Ping asks the peer for a sign of life; OnPong brings data back.
func (c *Conn) Ping(data uint64) {
	if c.err == nil {
		c.sendPing(0, data)
	}
}

// Fail ends the connection for the owner's reasons: a GOAWAY with that code is
// queued, and all streams are reset. reason is sent to the peer.
func (c *Conn) Fail(code ErrCode, reason string) { c.fail(&ConnError{Code: code, Reason: reason}) }

func (c *Conn) fail(e *ConnError) {
	if c.err != nil {
		return
	}
	c.sendGoAway(min(c.lastPeer, c.accepted), e.Code, e.Reason)
	c.err = e
	c.abandon(StreamError{Code: e.Code})
}

// Close forgets the connection after its transport was lost or the last output
// was written. Streams that are left are reset; what is pending is thrown away, and
// the batch given back, so that every connection has to be closed in the end.
func (c *Conn) Close() {
	if c.err == nil {
		c.err = ErrClosed
	}
	if c.out != nil {
		c.cfg.Batches.put(c.out)
		c.out = nil
	}
	if c.block != nil {
		c.cfg.Batches.putBlock(c.block)
		c.block = nil
	}
	c.abandon(StreamError{Code: ConnectError})
}

func (c *Conn) abandon(err StreamError) {
	for _, s := range c.streams.all() {
		if !s.has(released) {
			c.drop(s, err)
		}
	}
}
