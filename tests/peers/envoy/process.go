// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Proxy is an Envoy that runs.
type Proxy struct {
	*testnet.Process
	client *http.Client
}

// Start runs an Envoy on the host and waits until it is ready.
func Start(ctx context.Context, host *testnet.Host, config string) (*Proxy, error) {
	binary, err := Fetch(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(host.Dir(), "envoy.yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	p := &Proxy{client: &http.Client{
		Transport: &http.Transport{DialContext: host.DialContext, DisableKeepAlives: true},
		Timeout:   5 * time.Second,
	}}
	p.Process, err = host.Start(testnet.Command{
		Name: "envoy", Path: binary, Cgroup: "envoy",
		// Drains begin at once, and last longer than any test.
		Args: []string{
			"-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
			"--drain-strategy", "immediate", "--drain-time-s", "600",
		},
	})
	if err != nil {
		return nil, err
	}
	err = testnet.Until(ctx, func() error {
		select {
		case <-p.Done():
			return fmt.Errorf("envoy ended: %s", p.Stderr().Tail(2000))
		default:
		}
		_, err := p.ask(ctx, http.MethodGet, "/ready")
		return err
	})
	if err != nil {
		_ = p.Kill()
		return nil, fmt.Errorf("start envoy: %w: %s", err, p.Stderr().Tail(2000))
	}
	return p, nil
}

// Drain makes Envoy tell its peers to go elsewhere. Its listeners stay open.
func (p *Proxy) Drain(ctx context.Context) error {
	_, err := p.ask(ctx, http.MethodPost, "/drain_listeners?graceful&skip_exit")
	return err
}

// Counters are all counters and gauges that were ever used, by name.
func (p *Proxy) Counters(ctx context.Context) (map[string]uint64, error) {
	text, err := p.ask(ctx, http.MethodGet, "/stats?usedonly")
	if err != nil {
		return nil, err
	}
	counters := make(map[string]uint64)
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil { // histograms are none
			counters[name] = n
		}
	}
	return counters, nil
}

func (p *Proxy) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+admin.String()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return "", fmt.Errorf("ask envoy: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("ask envoy: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("ask envoy for %s: %s: %s", path, resp.Status, body)
	}
	return string(body), nil
}
