// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Cluster is the servers of a datacenter, of which one leads while most of them
// are there.
type Cluster []*Server

// StartCluster starts servers that end with the test: one on each host, or as
// many as there are names, on this machine. The options are each one's.
func StartCluster(t Test, o Options, names []string, hosts []*testnet.Host) Cluster {
	t.Helper()
	if _, err := Binary(t.Context()); err != nil {
		t.Fatalf("%v", err)
	}
	c := make(Cluster, len(names))
	for i, name := range names {
		own := o
		own.Node, own.Dir = name, t.TempDir()
		if hosts != nil {
			own.Host = hosts[i]
		}
		s, err := prepare(t.Context(), own)
		if err == nil {
			err = s.choose()
		}
		if err != nil {
			t.Fatalf("%v", err)
		}
		c[i] = s
	}
	for _, s := range c {
		s.peers = c
	}
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	// None has a leader before most of them run.
	var starting sync.WaitGroup
	failed := make([]error, len(c))
	for i, s := range c {
		starting.Go(func() { failed[i] = s.Restart(ctx) })
	}
	starting.Wait()
	for _, s := range c {
		if s.process != nil {
			t.Cleanup(func() { finish(t, s.process) })
		}
	}
	if err := errors.Join(failed...); err != nil {
		t.Fatalf("%v", err)
	}
	return c
}

// Leader is the server that leads, as another one of those that run says.
func (c Cluster) Leader(ctx context.Context) (leader *Server, err error) {
	err = testnet.Until(ctx, func() error {
		for _, s := range c {
			if !s.Runs() {
				continue
			}
			said, err := s.Client().Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx))
			if err != nil {
				return fmt.Errorf("ask %s for its leader: %w", s.options.Node, err)
			}
			if leader = c.at(said); leader == nil || !leader.Runs() {
				return fmt.Errorf("%s follows %q: %w", s.options.Node, said, errNoLeader)
			}
			return nil
		}
		return errEnded
	})
	return leader, err
}

// at is the server whose RPC address it is.
func (c Cluster) at(address string) *Server {
	for _, s := range c {
		if address == s.rpcAddress().String() {
			return s
		}
	}
	return nil
}

// Lead has a server become the leader.
func (c Cluster) Lead(ctx context.Context, next *Server) error {
	return testnet.Until(ctx, func() error {
		leader, err := c.Leader(ctx)
		if err != nil || leader == next {
			return err
		}
		q := (&api.QueryOptions{}).WithContext(ctx)
		config, err := leader.Client().Operator().RaftGetConfiguration(q)
		if err != nil {
			return fmt.Errorf("read configuration of raft: %w", err)
		}
		for _, s := range config.Servers {
			if s.Node != next.options.Node {
				continue
			}
			if _, err := leader.Client().Operator().RaftLeaderTransfer(s.ID, q); err != nil {
				return fmt.Errorf("make %s the leader: %w", s.Node, err)
			}
		}
		return errNoLeader // until it is
	})
}

// rpcAddress is where the other servers reach this one.
func (s *Server) rpcAddress() netip.AddrPort {
	return netip.AddrPortFrom(net4(s.options.Host), s.ports.Server)
}

// joinAddresses are those of the servers that this agent joins.
func (s *Server) joinAddresses() (list []string) {
	for _, p := range s.peers {
		list = append(list, net4(p.options.Host).String()+":"+strconv.Itoa(int(p.ports.SerfLAN)))
	}
	return list
}
