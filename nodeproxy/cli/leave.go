// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/sockmap"
)

func (c *commands) leave() *cobra.Command {
	return &cobra.Command{
		Use:   "leave",
		Short: "Take this machine out of the mesh: remove what the node left in the kernel",
		Long: `Remove what the node left in the kernel: programs, maps, links. Workloads
connect as if there had never been a mesh. The node must be stopped first. What
is in stateDir stays.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
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
			return nil
		},
	}
}
