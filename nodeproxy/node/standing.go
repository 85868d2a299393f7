// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
)

const (
	// standingInterval is how often the line is looked at that systemctl status
	// shows.
	standingInterval = 2 * time.Second
	// bootPatience is how long the boot waits for a source. Without any word of
	// the mesh there is nothing to put in force: what an earlier process left in
	// the kernel is, and the machine must come up for the source to come up.
	bootPatience = 2*firstWord + standingInterval
)

// reportStanding keeps the service manager informed until ctx is done.
func (n *Node) reportStanding(ctx context.Context) {
	tick := time.NewTicker(standingInterval)
	defer tick.Stop()
	said, released := "", false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.draining.Load() || n.relieved() {
			continue
		}
		text := n.standing()
		var err error
		switch {
		case !n.ready.Load() && !released && time.Since(n.started) > bootPatience:
			released = true
			n.log.Warn("no source has answered yet; the boot goes on", "status", text)
			err = n.manager.Ready(text)
		case text != said:
			err = n.manager.Status(text)
		}
		said = text
		if err != nil {
			n.log.Debug("notify service manager", "error", err)
		}
	}
}

// maxStanding keeps the line readable.
const maxStanding = 400

// standing says what is in force, and what is missing.
func (n *Node) standing() string {
	s := n.views.load().snapshot
	text := fmt.Sprintf("%d workloads, %d services", len(s.Workloads()), len(s.Services()))
	if !n.ready.Load() {
		text = "capture is not in force yet"
	}
	st := api.Status{Identity: n.identityStatus(n.settingsFile())}
	for _, src := range n.merger.Store().Load().Sources() {
		st.Sources = append(st.Sources, api.Source{Name: src.Name, Error: src.Err, Warnings: src.Warnings})
		if !src.Ready && src.Err == "" {
			text += "; waiting for source " + src.Name
		}
	}
	n.reloads.mu.Lock()
	if n.reloads.lastErr != nil {
		st.Config.LastError = n.reloads.lastErr.Error()
	}
	n.reloads.mu.Unlock()
	for _, p := range n.problems(&st) {
		text += "; " + p
	}
	if len(st.Identity.Missing) > 0 {
		text += "; no leaf for " + strings.Join(st.Identity.Missing, ", ")
	}
	// The protocol has a line for it.
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxStanding {
		text = strings.ToValidUTF8(text[:maxStanding], "") + " …; see meshproxy status"
	}
	return text
}
