// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

// maxResponse bounds what a probe reads of a response's head.
const maxResponse = 64 << 10

var errNoDial = errors.New("no way to connect to endpoints is configured")

// Dial connects to an endpoint at addr, which is one of its ports.
type Dial func(ctx context.Context, svc *mesh.Service, e *mesh.Endpoint, addr netip.AddrPort) (net.Conn, error)

// probe is one try of a check.
type probe struct {
	service  *mesh.Service
	endpoint *mesh.Endpoint
	addr     netip.AddrPort
	http     bool // makes the service's request, too
	dial     Dial
}

// run returns nil if the endpoint is healthy.
func (p probe) run(ctx context.Context) error {
	if p.dial == nil {
		return errNoDial
	}
	spec := p.service.HealthCheck
	timeout := spec.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := p.dial(ctx, p.service, p.endpoint, p.addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	if !p.http {
		return nil
	}
	// A connection through a tunnel may know no deadlines; closing it ends the
	// exchange in every case.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := get(conn, p.service, spec.HTTPPath); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("no response within %v", timeout.Round(time.Millisecond))
		}
		return err
	}
	return nil
}

// get makes one HTTP/1.1 request. net/http's Transport would keep goroutines
// and connections for what is a single exchange.
func get(conn io.ReadWriter, svc *mesh.Service, path string) error {
	host := svc.Name.Name
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: meshproxy-health-check\r\nAccept: */*\r\nConnection: close\r\n\r\n", path, host)
	if err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	in := bufio.NewReader(io.LimitReader(conn, maxResponse))
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
	if err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("status %d; want 2xx or 3xx", resp.StatusCode)
	}
	return nil
}
