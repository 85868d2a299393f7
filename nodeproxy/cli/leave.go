// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap"
)

func (c *commands) leave() *cobra.Command {
	return &cobra.Command{
		Use:   "leave",
		Short: "Take this machine out of the mesh: remove what the node left in the kernel",
		Long: `Remove what the node left in the kernel: programs, maps, links. Workloads
connect as if there had never been a mesh. What the node registered with the
Consul agent is deregistered. The node must be stopped first. What is in
stateDir stays.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := c.load(nil)
			if err != nil {
				return err
			}
			if err := c.Leave(sockmap.Options{BPFFS: conf.BPF.FS, Instance: conf.BPF.Instance}); err != nil {
				if errors.Is(err, sockmap.ErrBusy) {
					return fmt.Errorf("leave the mesh: the node is running; stop it first: %w", err)
				}
				return fmt.Errorf("leave the mesh: %w", err)
			}
			c.inform("Nothing of instance %q is left in the kernel.", conf.BPF.Instance)
			return c.leaveConsul(cmd.Context(), conf)
		},
	}
}

// leaveTime bounds what the agent may take to forget the node.
const leaveTime = 30 * time.Second

// leaveConsul takes back what the node registered with the agent. A restart
// does not: the rows are what it comes back to.
func (c *commands) leaveConsul(ctx context.Context, conf *config.Config) error {
	if !conf.Sources.Consul.Enabled {
		return nil
	}
	agent, err := consulagent.New(conf.Consul, 1)
	if err != nil {
		return fmt.Errorf("leave Consul: %w", err)
	}
	defer agent.Close()
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	ids, err := consul.Leave(ctx, agent, conf.Node.Name)
	if err != nil {
		return fmt.Errorf("leave Consul: %w", err)
	}
	if len(ids) == 0 {
		c.inform("The Consul agent at %s has nothing of node %q.", agent.Address(), conf.Node.Name)
		return nil
	}
	c.inform("Deregistered with the Consul agent at %s: %s.", agent.Address(), strings.Join(ids, ", "))
	return nil
}
