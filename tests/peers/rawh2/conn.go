// SPDX-License-Identifier: Apache-2.0

// Package rawh2 is an end of an HTTP/2 connection that does what a test wants,
// frame by frame, be it allowed or not. Frames and HPACK are those of
// golang.org/x/net; everything beyond them (streams, windows, answers) is left
// to the test, except that SETTINGS and PING are acknowledged.
package rawh2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Frame is a frame that was received.
type Frame struct {
	http2.FrameHeader
	Data     []byte              // of DATA, without padding
	Fields   []hpack.HeaderField // of HEADERS, with their CONTINUATIONs
	Settings []http2.Setting
	Code     http2.ErrCode // of RST_STREAM and GOAWAY
	Last     uint32        // of GOAWAY: last stream
	Debug    string        // of GOAWAY
	Add      uint32        // of WINDOW_UPDATE
	Ping     [8]byte
}

// Field returns a field of HEADERS, "" without it.
func (f *Frame) Field(name string) string {
	for _, field := range f.Fields {
		if field.Name == name {
			return field.Value
		}
	}
	return ""
}

func (f *Frame) String() string {
	switch f.Type {
	case http2.FrameHeaders:
		return fmt.Sprintf("%v %v", f.FrameHeader, f.Fields)
	case http2.FrameRSTStream, http2.FrameGoAway:
		return fmt.Sprintf("%v %v last=%d %s", f.FrameHeader, f.Code, f.Last, f.Debug)
	}
	return f.FrameHeader.String()
}

// Conn is one end of a connection. Its methods may be called from any
// goroutine.
type Conn struct {
	net.Conn
	write  sync.Mutex // around framer
	framer *http2.Framer
	encode sync.Mutex // around block and enc
	block  bytes.Buffer
	enc    *hpack.Encoder

	mu      sync.Mutex
	frames  []*Frame        // received and not taken
	over    map[uint32]bool // streams whose end Payload has met
	err     error           // why no more come
	changed chan struct{}
}

// Client sends the preface and SETTINGS.
func Client(c net.Conn, settings ...http2.Setting) (*Conn, error) {
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return nil, fmt.Errorf("send preface: %w", err)
	}
	return start(c, settings)
}

// Server reads the preface and sends SETTINGS.
func Server(c net.Conn, settings ...http2.Setting) (*Conn, error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
		return nil, fmt.Errorf("read preface: %w: got %q", errors.Join(err, errPreface), preface)
	}
	return start(c, settings)
}

var errPreface = errors.New("want the preface of HTTP/2")

func start(nc net.Conn, settings []http2.Setting) (*Conn, error) {
	c := &Conn{Conn: nc, framer: http2.NewFramer(nc, nc), changed: make(chan struct{}), over: make(map[uint32]bool)}
	c.framer.SetMaxReadFrameSize(1 << 20)
	c.framer.AllowIllegalWrites = true
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	c.enc.SetMaxDynamicTableSizeLimit(0) // the peer may offer less than the default
	if err := c.Send(func(f *http2.Framer) error { return f.WriteSettings(settings...) }); err != nil {
		return nil, err
	}
	go c.read()
	return c, nil
}

// Send writes frames.
func (c *Conn) Send(write func(*http2.Framer) error) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := write(c.framer); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

// Block encodes a header list: name, value, name, value.
func (c *Conn) Block(fields ...string) []byte {
	c.encode.Lock()
	defer c.encode.Unlock()
	c.block.Reset()
	for i := 0; i+1 < len(fields); i += 2 {
		_ = c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // to a buffer
	}
	return bytes.Clone(c.block.Bytes())
}

// Headers sends a header list as one frame.
func (c *Conn) Headers(id uint32, end bool, fields ...string) error {
	block := c.Block(fields...)
	return c.Send(func(f *http2.Framer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: end})
	})
}

// Connect asks for a tunnel, with further fields.
func (c *Conn) Connect(id uint32, authority string, fields ...string) error {
	return c.Headers(id, false, append([]string{":method", "CONNECT", ":authority", authority}, fields...)...)
}

// Data sends a DATA frame; nobody looks at windows.
func (c *Conn) Data(id uint32, end bool, data []byte) error {
	return c.Send(func(f *http2.Framer) error { return f.WriteData(id, end, data) })
}

// Window sends a WINDOW_UPDATE.
func (c *Conn) Window(id, add uint32) error {
	return c.Send(func(f *http2.Framer) error { return f.WriteWindowUpdate(id, add) })
}

// Reset sends a RST_STREAM.
func (c *Conn) Reset(id uint32, code http2.ErrCode) error {
	return c.Send(func(f *http2.Framer) error { return f.WriteRSTStream(id, code) })
}

// read collects frames until the connection ends.
func (c *Conn) read() {
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			c.add(nil, err)
			return
		}
		frame := copied(f)
		ack := frame.Flags.Has(http2.FlagSettingsAck) // that of PING is the same bit
		switch {
		case frame.Type == http2.FrameSettings && !ack:
			_ = c.Send((*http2.Framer).WriteSettingsAck) // reading fails as well, if this does
		case frame.Type == http2.FramePing && !ack:
			_ = c.Send(func(f *http2.Framer) error { return f.WritePing(true, frame.Ping) })
		}
		c.add(frame, nil)
	}
}

func copied(f http2.Frame) *Frame {
	c := &Frame{FrameHeader: f.Header()}
	switch f := f.(type) {
	case *http2.DataFrame:
		c.Data = bytes.Clone(f.Data())
	case *http2.MetaHeadersFrame:
		c.Fields = f.Fields
	case *http2.SettingsFrame:
		for i := range f.NumSettings() {
			c.Settings = append(c.Settings, f.Setting(i))
		}
	case *http2.RSTStreamFrame:
		c.Code = f.ErrCode
	case *http2.GoAwayFrame:
		c.Code, c.Last, c.Debug = f.ErrCode, f.LastStreamID, string(f.DebugData())
	case *http2.WindowUpdateFrame:
		c.Add = f.Increment
	case *http2.PingFrame:
		c.Ping = f.Data
	}
	return c
}

func (c *Conn) add(f *Frame, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f != nil {
		c.frames = append(c.frames, f)
	}
	c.err = err
	close(c.changed)
	c.changed = make(chan struct{})
}

// Await takes the first frame that matches out of those received, now or later.
func (c *Conn) Await(ctx context.Context, match func(*Frame) bool) (*Frame, error) {
	for {
		c.mu.Lock()
		i := slices.IndexFunc(c.frames, match)
		if i >= 0 {
			f := c.frames[i]
			c.frames = slices.Delete(c.frames, i, i+1)
			c.mu.Unlock()
			return f, nil
		}
		err, changed := c.err, c.changed
		c.mu.Unlock()
		if err != nil {
			return nil, fmt.Errorf("await frame: %w", err)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("await frame: %w", ctx.Err())
		}
	}
}

// Received are the frames that nobody has taken yet.
func (c *Conn) Received() []*Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.frames)
}

// Ended waits until the peer has ended the connection.
func (c *Conn) Ended(ctx context.Context) error {
	_, err := c.Await(ctx, func(*Frame) bool { return false })
	if ctx.Err() != nil {
		return err
	}
	return nil
}

// Of matches frames of a type on a stream.
func Of(kind http2.FrameType, stream uint32) func(*Frame) bool {
	return func(f *Frame) bool { return f.Type == kind && f.StreamID == stream }
}

// Payload takes n bytes of a stream's data or more, as whole frames, or less if
// its end comes before.
func (c *Conn) Payload(ctx context.Context, id uint32, n int) (data []byte, end bool, err error) {
	for len(data) < n && !c.isOver(id) {
		f, err := c.Await(ctx, Of(http2.FrameData, id))
		if err != nil {
			return data, false, err
		}
		data = append(data, f.Data...)
		if f.StreamEnded() {
			c.mu.Lock()
			c.over[id] = true
			c.mu.Unlock()
		}
	}
	return data, c.isOver(id), nil
}

func (c *Conn) isOver(id uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.over[id]
}

// StreamEnded reports whether the frame ends its stream.
func (f *Frame) StreamEnded() bool {
	return (f.Type == http2.FrameData || f.Type == http2.FrameHeaders) && f.Flags.Has(http2.FlagDataEndStream)
}

// Settle waits until the peer has handled everything that was sent: it answers
// a PING in order.
func (c *Conn) Settle(ctx context.Context) error {
	mark := [8]byte{'s', 'e', 't', 't', 'l', 'e'}
	if err := c.Send(func(f *http2.Framer) error { return f.WritePing(false, mark) }); err != nil {
		return err
	}
	_, err := c.Await(ctx, func(f *Frame) bool {
		return f.Type == http2.FramePing && f.Flags.Has(http2.FlagPingAck) && f.Ping == mark
	})
	return err
}
