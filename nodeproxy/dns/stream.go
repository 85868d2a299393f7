// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// streamIdle is how long a client may take for its next query. RFC 7766
	// section 6.2.3 asks for "a few seconds".
	streamIdle = 10 * time.Second
	// streamWrite is how long a client may take to read an answer.
	streamWrite = 5 * time.Second
	// streamPipeline is how many queries of one connection wait for resolvers
	// at a time; then the next is not read.
	streamPipeline = 32
)

func (s *Server) serveStreams(l *listening, scope string, listener net.Listener) {
	server, _ := addrPort(listener.Addr()) // serve has looked at it
	var delay time.Duration
	for {
		c, err := listener.Accept()
		if err != nil {
			if l.reading.Err() == nil && l.ctx.Err() == nil {
				s.options.Logger.Warn("accept DNS client", "listener", listener.Addr().String(), "error", err)
			}
			if !l.pause(&delay) {
				return
			}
			continue
		}
		delay = 0
		client, err := addrPort(c.RemoteAddr())
		if err != nil {
			_ = c.Close()
			continue
		}
		key := s.options.Client(Asker{scope, "tcp", client, server})
		release, ok := s.streams.acquire(key)
		if !ok {
			s.options.Metrics.Query(ResultRefused)
			_ = c.Close()
			continue
		}
		l.Go(func() {
			defer release()
			s.serveStream(l.ctx, key, c)
		})
	}
}

// stream is a client's connection.
type stream struct {
	net.Conn
	write   sync.Mutex
	pending atomic.Int32
}

// serveStream answers the queries of one connection in whatever order answers
// arrive (RFC 7766 section 6.2.1.1). A client that has sent its last query
// still gets the answers.
func (s *Server) serveStream(ctx context.Context, key string, c net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()

	st := &stream{Conn: c}
	var waiting sync.WaitGroup
	defer waiting.Wait()
	slots := make(chan struct{}, streamPipeline)
	r := bufio.NewReaderSize(c, 1024)
	for {
		raw, err := st.next(r)
		if err != nil {
			return
		}
		answer, q := s.decide(raw, true)
		if q != nil {
			release, ok := s.queries.acquire(key)
			if ok {
				slots <- struct{}{}
				st.pending.Add(1)
				waiting.Go(func() {
					defer release()
					if answer := s.ask(ctx, q); answer == nil || st.send(answer) != nil {
						cancel()
					}
					st.pending.Add(-1)
					<-slots
				})
				continue
			}
			answer = s.overload(q)
		}
		if answer != nil && st.send(answer) != nil {
			cancel()
			return
		}
	}
}

var errTooLong = errors.New("query is too long")

// next reads a query. A connection on which answers are outstanding is not
// idle.
func (st *stream) next(r *bufio.Reader) ([]byte, error) {
	for {
		if err := st.SetReadDeadline(time.Now().Add(streamIdle)); err != nil {
			return nil, err
		}
		// Peek keeps what it has read when the time is up.
		_, err := r.Peek(2)
		if errors.Is(err, os.ErrDeadlineExceeded) && st.pending.Load() > 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		break
	}
	return readMessage(r, maxQuery)
}

func (st *stream) send(answer []byte) error {
	st.write.Lock()
	defer st.write.Unlock()
	if err := st.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
		return err
	}
	return writeMessage(st, answer)
}

// readMessage reads a message with the length before it, as DNS over TCP has
// them (RFC 1035 section 4.2.2).
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, errTooLong
	}
	m := make([]byte, n)
	_, err := io.ReadFull(r, m)
	return m, err
}

// writeMessage writes length and message at once: some servers can't do with
// less in the first segment (RFC 7766 section 8).
func writeMessage(w io.Writer, m []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(m)), uint16(len(m)))
	_, err := w.Write(append(b, m...))
	return err
}
