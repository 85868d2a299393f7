// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"strings"

	"github.com/meshproxy/meshproxy/nodeproxy/admin"
)

// Ready implements admin.Health.
func (n *Node) Ready() error {
	switch {
	case n.draining.Load():
		return errDraining
	case n.returning.Load():
		return errRestarting
	case !n.ready.Load():
		return errors.New("capture is not in force yet")
	}
	if err := n.Live(); err != nil {
		return err
	}
	if why := n.servesNothing(); why != "" {
		return fmt.Errorf("%w: %s", admin.ErrServesNothing, why)
	}
	return nil
}

// Unserved implements admin.Health.
func (n *Node) Unserved() []string {
	missing := n.identityStatus(n.settingsFile()).Missing
	if len(missing) == 0 {
		return nil
	}
	return []string{"no leaf for " + strings.Join(missing, ", ")}
}

// servesNothing says why a node in whose hands connections are can't bring one
// anywhere: it has never heard of the mesh, or can't prove who anybody is. What
// was heard before and is gone for now is no such reason.
func (n *Node) servesNothing() string {
	for _, src := range n.merger.Store().Load().Sources() {
		switch {
		case src.Ready:
		case src.Err != "":
			return fmt.Sprintf("source %s: %s", src.Name, src.Err)
		default:
			return "waiting for source " + src.Name
		}
	}
	if !n.leavesAreGiven() {
		return ""
	}
	st := n.identityStatus(n.settingsFile())
	workloads := len(n.views.load().snapshot.Workloads())
	switch {
	case workloads > 0 && len(st.Missing) < workloads:
		return ""
	case st.Error != "":
		return "identity: " + st.Error
	case workloads > 0:
		return "no leaf for " + strings.Join(st.Missing, ", ")
	default:
		return ""
	}
}
