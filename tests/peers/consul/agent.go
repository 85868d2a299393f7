// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Options say what agent to start. The zero value is the only server of a
// datacenter, on this machine's loopback, with Connect and without ACLs.
type Options struct {
	// Dev is `consul agent -dev`, whose state ends with the process: after
	// Restart its CA, its cluster and its indexes are new ones.
	Dev bool
	// ACLDefaultDeny turns ACLs on; nothing is allowed without a token.
	ACLDefaultDeny bool
	// Join makes it a client agent of the server, and of its cluster.
	Join *Server
	// Host is where it runs, with Consul's usual ports. The HTTP API is on the
	// host's loopback; serf and RPC are on its address.
	Host *testnet.Host
	// Node is the name of the agent's node.
	Node string
	// Datacenter is dc1 by default.
	Datacenter string
	// HCL is further configuration of the agent.
	HCL string
	// Dir keeps data, configuration and logs.
	Dir string
}

// Server is an agent that runs, or has run.
type Server struct {
	// HTTPAddr, GRPCAddr and DNSAddr are on loopback, of the host if there is one.
	HTTPAddr, GRPCAddr, DNSAddr netip.AddrPort
	// ManagementToken may do everything; empty without ACLs.
	ManagementToken string

	options Options
	peers   Cluster // the servers that it joins, itself among them if it is one
	ports   ports
	binary  string
	process process
}

// Launch starts an agent and waits until it has a leader and a CA. Tests use
// Start.
func Launch(ctx context.Context, o Options) (*Server, error) {
	s, err := prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	// Somebody may take a port between choosing and listening.
	for range 3 {
		if err = s.choose(); err != nil {
			return nil, err
		}
		if err = s.Restart(ctx); !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// prepare makes an agent that does not run yet.
func prepare(ctx context.Context, o Options) (*Server, error) {
	binary, err := Binary(ctx)
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, binary: binary}
	if o.ACLDefaultDeny {
		s.ManagementToken = managementToken
	}
	if j := o.Join; j != nil {
		s.ManagementToken = j.ManagementToken
		if s.peers = j.peers; s.peers == nil {
			s.peers = Cluster{j}
		}
	}
	return s, nil
}

// choose chooses the agent's ports.
func (s *Server) choose() (err error) {
	if s.ports, err = choosePorts(s.options.Host); err != nil {
		return err
	}
	s.HTTPAddr = netip.AddrPortFrom(loopback, s.ports.HTTP)
	s.GRPCAddr = netip.AddrPortFrom(loopback, s.ports.GRPC)
	s.DNSAddr = netip.AddrPortFrom(loopback, s.ports.DNS)
	return nil
}

var errEnded = errors.New("consul has ended")

// Restart starts the agent again, with the same addresses, after stopping it if
// it runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Launch(); err != nil {
		return err
	}
	return s.Await(ctx)
}

// Launch is Restart without waiting until the agent serves.
func (s *Server) Launch() error {
	if err := s.Stop(); err != nil {
		return err
	}
	args, err := s.arguments()
	if err != nil {
		return err
	}
	s.process, err = start(s.options.Host, command{
		name: "consul", path: s.binary, args: args, dir: s.options.Dir,
	})
	return err
}

// Await waits until the agent has a leader, a CA, and its tokens.
func (s *Server) Await(ctx context.Context) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	err = testnet.Until(ctx, func() error {
		select {
		case <-s.process.Done():
			return nil // said below
		default:
		}
		return s.serves(ctx, client)
	})
	select {
	case <-s.process.Done():
		err = errEnded
	default:
	}
	if err != nil {
		return fmt.Errorf("start consul: %w: %s", err, tail(s.process, 2000))
	}
	return nil
}

var (
	errNoLeader = errors.New("no leader")
	errNoCA     = errors.New("no active root")
)

func (s *Server) serves(ctx context.Context, c *api.Client) error {
	q := (&api.QueryOptions{}).WithContext(ctx)
	if leader, err := c.Status().LeaderWithQueryOptions(q); err != nil || leader == "" {
		return errors.Join(errNoLeader, err)
	}
	if roots, _, err := c.Agent().ConnectCARoots(q); err != nil || roots.ActiveRootID == "" {
		return errors.Join(errNoCA, err)
	}
	if s.ManagementToken == "" {
		return nil
	}
	_, _, err := c.ACL().TokenReadSelf(q)
	return err
}

// Stop ends the agent, as `systemctl stop` does: without leaving. It is no error
// if it doesn't run.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	return end(s.process)
}

// Kill ends the agent as a crash does.
func (s *Server) Kill() error {
	err := s.process.Signal(os.Kill)
	<-s.process.Done()
	return err
}

// Pause makes the agent answer nothing, without closing anything.
func (s *Server) Pause(ctx context.Context) error {
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return testnet.Until(ctx, func() error { // the signal takes its time
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid()))
		if err == nil && !bytes.Contains(stat, []byte(") T ")) {
			err = errRunning
		}
		return err
	})
}

var errRunning = errors.New("consul still runs")

// Resume ends Pause.
func (s *Server) Resume() error { return s.process.Signal(syscall.SIGCONT) }

// Runs reports whether the agent does.
func (s *Server) Runs() bool {
	if s.process == nil {
		return false
	}
	select {
	case <-s.process.Done():
		return false
	default:
		return true
	}
}

// Pid is that of the agent, for what it costs.
func (s *Server) Pid() int { return s.process.Pid() }

// Host is where the agent runs; nil for this machine.
func (s *Server) Host() *testnet.Host { return s.options.Host }

// Log is the path of the agent's log.
func (s *Server) Log() string { return s.process.Log() }

// client is one with all rights. It keeps no connections, since those would
// count with the agent's limit per client and outlive tests.
func (s *Server) client() (*api.Client, error) { return s.ClientWith(s.ManagementToken) }

// ClientWith makes a client with another token.
func (s *Server) ClientWith(token string) (*api.Client, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	if host := s.options.Host; host != nil {
		transport.DialContext = host.DialContext
	}
	c, err := api.NewClient(&api.Config{
		Address: s.HTTPAddr.String(), Token: token, HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, fmt.Errorf("make client of consul: %w", err)
	}
	return c, nil
}

// environment is what makes consul's commands talk to this agent.
func (s *Server) environment(token string) []string {
	return []string{
		"CONSUL_HTTP_ADDR=" + s.HTTPAddr.String(),
		"CONSUL_GRPC_ADDR=http://" + s.GRPCAddr.String(),
		"CONSUL_HTTP_TOKEN=" + token,
	}
}

// arguments writes the agent's configuration and returns what it is started
// with.
func (s *Server) arguments() ([]string, error) {
	o := s.options
	files := map[string]any{
		"agent.json": s.configuration(),
		"extra.hcl":  o.HCL,
	}
	args := []string{"agent"}
	if o.Dev {
		args = append(args, "-dev")
	}
	for _, name := range []string{"agent.json", "extra.hcl"} {
		path := filepath.Join(o.Dir, name)
		if err := write(path, files[name]); err != nil {
			return nil, err
		}
		args = append(args, "-config-file", path)
	}
	return args, nil
}
