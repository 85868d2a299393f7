// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/envoy"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Sidecar is a proxy beside one service, as Consul's users have them.
type Sidecar struct {
	process
	// Admin is Envoy's administration interface; the builtin proxy has none.
	Admin netip.AddrPort
	host  *testnet.Host
}

// Stop ends the sidecar.
func (s *Sidecar) Stop() error { return end(s.process) }

// sidecars numbers them: their logs stand side by side.
var sidecars atomic.Uint64

// StartEnvoy starts an Envoy for a service that is registered with a sidecar,
// by the service's id. An empty token is the management token.
func (s *Server) StartEnvoy(t Test, id, token string) *Sidecar {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	p, err := s.LaunchEnvoy(ctx, id, token)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { finish(t, p.process) })
	return p
}

// LaunchEnvoy is StartEnvoy for programs that are no tests.
func (s *Server) LaunchEnvoy(ctx context.Context, id, token string) (*Sidecar, error) {
	binary, err := envoy.Fetch(ctx)
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	p := &Sidecar{Admin: netip.AddrPortFrom(loopback, port), host: s.options.Host}
	bootstrap, err := s.bootstrap(ctx, binary, id, token, p.Admin)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("envoy-%s-%d", id, sidecars.Add(1))
	path := filepath.Join(s.options.Dir, name+".json")
	if err := write(path, string(bootstrap)); err != nil {
		return nil, err
	}
	p.process, err = start(s.options.Host, command{
		name: name, path: binary, dir: s.options.Dir,
		args: []string{"-c", path, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"},
	})
	if err != nil {
		return nil, err
	}
	return p, p.await(ctx, func() error { return errors.Join(p.ready(ctx), s.listening(ctx, id)) })
}

// listening asks whether the agent, and after it the servers, know that the sidecar
// listens: a check that ran before it did says for ten seconds that it doesn't,
// and clients take it out of use once they have heard so.
func (s *Server) listening(ctx context.Context, id string) error {
	q := (&api.QueryOptions{}).WithContext(ctx)
	filter := fmt.Sprintf("ServiceID == %q and Name == %q", id+"-sidecar-proxy", listens)
	here, err := s.Client().Agent().ChecksWithFilterOpts(filter, q)
	if err != nil {
		return err
	}
	for _, check := range here {
		if check.Status != api.HealthPassing {
			return fmt.Errorf("check of %s is %s: %s", check.ServiceID, check.Status, check.Output)
		}
		q.Filter = filter
		known, _, err := s.Client().Health().Checks(check.ServiceName, q)
		if err != nil {
			return err
		}
		if len(known) == 0 || known.AggregatedStatus() != api.HealthPassing {
			return fmt.Errorf("servers have not heard yet that %s listens", check.ServiceID)
		}
	}
	return nil
}

// Bootstrap is what the Envoy of a service that is registered with a sidecar is
// started with, for those who start it themselves.
func (s *Server) Bootstrap(ctx context.Context, envoy, id string, admin netip.AddrPort) ([]byte, error) {
	return s.bootstrap(ctx, envoy, id, s.ManagementToken, admin)
}

func (s *Server) bootstrap(ctx context.Context, envoy, id, token string, admin netip.AddrPort) ([]byte, error) {
	return s.run(ctx, cmp.Or(token, s.ManagementToken),
		"connect", "envoy", "-sidecar-for", id, "-bootstrap", "-ignore-envoy-compatibility",
		"-envoy-binary", envoy, "-admin-bind", admin.String(), "-grpc-addr", "http://"+s.GRPCAddr.String())
}

// ready asks Envoy whether it has its configuration from the agent.
func (s *Sidecar) ready(ctx context.Context) error {
	_, err := s.ask(ctx, "/ready")
	return err
}

// ask asks Envoy's administration interface.
func (s *Sidecar) ask(ctx context.Context, path string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	if s.host != nil {
		transport.DialContext = s.host.DialContext
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Admin.String()+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", errors.Join(err, fmt.Errorf("envoy is %s", strings.TrimSpace(string(body))))
	}
	return string(body), nil
}

// Clusters is what Envoy knows of its upstreams, as text.
func (s *Sidecar) Clusters(ctx context.Context) (string, error) { return s.ask(ctx, "/clusters") }

// Builtin says how Consul's builtin proxy is run. It sends no SNI.
type Builtin struct {
	// Service is who it speaks for.
	Service string
	// Upstreams are services with their local ports, such as "web:9191".
	Upstreams []string
	// Listen is where others reach it, and Application where the service is;
	// both empty: outbound only. With Listen it registers itself.
	Listen, Application netip.AddrPort
	// Token is the management token by default.
	Token string
}

// StartBuiltin starts Consul's builtin proxy.
func (s *Server) StartBuiltin(t Test, b Builtin) *Sidecar {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	p, err := s.LaunchBuiltin(ctx, b)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { finish(t, p.process) })
	return p
}

// LaunchBuiltin is StartBuiltin for programs that are no tests.
func (s *Server) LaunchBuiltin(ctx context.Context, b Builtin) (*Sidecar, error) {
	args := []string{"connect", "proxy", "-service", b.Service}
	for _, u := range b.Upstreams {
		args = append(args, "-upstream", u)
	}
	if b.Listen.IsValid() {
		args = append(args, "-service-addr", b.Application.String(), "-listen", b.Listen.String(), "-register")
	}
	p := &Sidecar{host: s.options.Host}
	var err error
	p.process, err = start(s.options.Host, command{
		name: fmt.Sprintf("builtin-%s-%d", b.Service, sidecars.Add(1)), path: s.binary, dir: s.options.Dir,
		args: args, env: s.environment(cmp.Or(b.Token, s.ManagementToken)),
	})
	if err != nil {
		return nil, err
	}
	want := len(b.Upstreams) // listeners that it logs when they are there
	if b.Listen.IsValid() {
		want++
	}
	return p, p.await(ctx, func() error {
		text, err := os.ReadFile(p.Log())
		if n := strings.Count(string(text), "Starting listener"); err != nil || n < want {
			return errors.Join(err, fmt.Errorf("%d of %d listeners", n, want))
		}
		return nil
	})
}

// await waits until the sidecar is as wanted, or ends it.
func (s *Sidecar) await(ctx context.Context, wanted func() error) error {
	err := testnet.Until(ctx, func() error {
		select {
		case <-s.Done():
			return nil // said below
		default:
			return wanted()
		}
	})
	select {
	case <-s.Done():
		err = errors.New("it has ended")
	default:
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start sidecar: %w: %s", err, tail(s.process, 2000)), end(s.process))
	}
	return nil
}

// run runs a command of consul's that ends, and returns what it says.
func (s *Server) run(ctx context.Context, token string, args ...string) ([]byte, error) {
	if host := s.options.Host; host != nil {
		return host.Run(ctx, testnet.Command{
			Name: "consul-command", Path: s.binary, Args: args, Env: s.environment(token), Cgroup: "consul-command.service",
		})
	}
	cmd := exec.CommandContext(ctx, s.binary, args...)
	cmd.Env = append(os.Environ(), s.environment(token)...)
	out, err := cmd.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		err = fmt.Errorf("%w: %s", err, failed.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("run consul %s: %w", strings.Join(args[:2], " "), err)
	}
	return out, nil
}

// Counters are Envoy's counters and gauges that were ever used, by name.
func (s *Sidecar) Counters(ctx context.Context) (map[string]uint64, error) {
	text, err := s.ask(ctx, "/stats?usedonly")
	if err != nil {
		return nil, err
	}
	counters := make(map[string]uint64)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.ParseUint(value, 10, 64); err == nil { // histograms are none
			counters[name] = n
		}
	}
	return counters, nil
}
