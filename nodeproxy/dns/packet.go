// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net"
	"time"
)

// maxQuery bounds the queries that are accepted. Real ones have less than 512
// bytes, with padding (RFC 8467) a few hundred more.
const maxQuery = 4096

// servePackets answers datagrams until the listener is closed. Names of the
// mesh are answered right here; a goroutine is started only for a query that
// waits for a resolver and is within the limits.
func (s *Server) servePackets(l *listening, scope string, c net.PacketConn) {
	// One byte more than may be: a longer query is seen to be cut off.
	buf := make([]byte, maxQuery+1)
	server, _ := addrPort(c.LocalAddr()) // serve has looked at it
	var delay time.Duration
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if l.reading.Err() == nil && l.ctx.Err() == nil {
				s.options.Logger.Warn("receive DNS query", "listener", c.LocalAddr().String(), "error", err)
			}
			if !l.pause(&delay) {
				return
			}
			continue
		}
		delay = 0
		client, err := addrPort(from)
		if err != nil {
			continue
		}
		answer, q := s.decide(buf[:n], false)
		if q != nil {
			release, ok := s.queries.acquire(s.options.Client(Asker{scope, "udp", client, server}))
			if ok {
				q = q.clone()
				l.Go(func() {
					defer release()
					if answer := s.ask(l.ctx, q); answer != nil {
						_, _ = c.WriteTo(answer, from)
					}
				})
				continue
			}
			answer = s.overload(q)
		}
		if answer != nil {
			// The client asks again when it gets no answer.
			_, _ = c.WriteTo(answer, from)
		}
	}
}
