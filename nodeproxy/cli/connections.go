// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func (c *commands) connections() *cobra.Command {
	var filter api.ConnectionFilter
	var watch bool
	cmd := &cobra.Command{
		Use:   "connections",
		Short: "Show what is open; with --watch, what opens, closes and is refused",
		Args:  cobra.NoArgs,
		RunE: c.ask(func(cmd *cobra.Command, node *client.Client) error {
			if watch {
				return c.watchConnections(cmd, node, filter)
			}
			l, err := node.Connections(cmd.Context(), filter)
			if err != nil {
				return err
			}
			return c.show(l, func(p *page) { renderConnections(p, &l) })
		}),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&watch, "watch", "w", false, "show events as they happen, until interrupted")
	flags.StringVar(&filter.Source, "source", "", "only from this workload")
	flags.StringVar(&filter.Destination, "destination", "", "only to this workload")
	flags.StringVar(&filter.Service, "service", "", "only to this service")
	flags.StringVar(&filter.Path, "path", "", "only on this path: direct, local, splice, hbone, mtls, plaintext, passthrough")
	flags.StringVar(&filter.Direction, "direction", "", "only outbound or inbound")
	flags.IntVar(&filter.Limit, "limit", 0, "at most so many")
	return cmd
}

var connectionHeader = []string{"direction", "source", "destination", "service", "path", "client", "endpoint", "age", "sent", "received"}

func renderConnections(p *page, l *api.Connections) {
	rows := make([][]cell, 0, len(l.Connections))
	for i := range l.Connections {
		conn := &l.Connections[i]
		endpoint := text(conn.Endpoint)
		if !conn.Connected {
			endpoint = cell{conn.Endpoint + " (connecting)", warn}
		}
		rows = append(rows, []cell{
			text(conn.Direction),
			{conn.Source, strong},
			{conn.Destination, strong},
			text(conn.Service), text(conn.Path),
			text(conn.Client), endpoint, text(brief(p.now.Sub(conn.Opened))), text(size(conn.Sent)), text(size(conn.Received)),
		})
	}
	p.table(connectionHeader, rows)
	if l.Total > len(l.Connections) {
		p.printf("\n%d of %d connections.\n", len(l.Connections), l.Total)
	}
}

// watchConnections shows events until the command is interrupted. In JSON, one
// object a line: a stream has no end that a list could be closed at.
func (c *commands) watchConnections(cmd *cobra.Command, node *client.Client, filter api.ConnectionFilter) error {
	if c.output == outputJSON {
		encoder := json.NewEncoder(c.Stdout)
		return node.WatchConnections(cmd.Context(), filter, func(e api.ConnectionEvent) error { return encoder.Encode(e) })
	}
	p := &page{w: c.Stdout, colour: c.Colour}
	return node.WatchConnections(cmd.Context(), filter, func(e api.ConnectionEvent) error {
		renderEvent(p, &e)
		return p.err
	})
}

var eventStyles = map[string]style{api.EventOpened: plain, api.EventClosed: faint, api.EventRefused: bad}

// renderEvent writes a line; without all events at hand there are no columns.
func renderEvent(p *page, e *api.ConnectionEvent) {
	conn := &e.Connection
	if e.Lost > 0 {
		p.printf("%s\n", p.paint(cell{fmt.Sprintf("%s lost: they came faster than they could be shown", plural(int(e.Lost), "event")), warn}))
	}
	from := cmp.Or(conn.Source, conn.Client)
	to := cmp.Or(conn.Service, conn.Destination, conn.Dialled)
	if conn.Destination != "" && conn.Destination != to {
		to += " (" + conn.Destination + ")"
	}
	line := fmt.Sprintf("%s  %-8s %-8s %s -> %s", e.Time.Format("15:04:05.000"), e.Event, conn.Direction, clean(from), clean(to))
	if conn.Path != "" {
		line += " " + conn.Path
	}
	if e.Event == api.EventClosed {
		line += fmt.Sprintf("  %s, %s sent, %s received", brief(e.Time.Sub(conn.Opened)), size(conn.Sent), size(conn.Received))
	}
	if e.Reason != reason.None {
		line += "  " + e.Reason.String()
	}
	if e.Detail != "" {
		line += ": " + clean(e.Detail)
	}
	p.printf("%s\n", p.paint(cell{line, eventStyles[e.Event]}))
}
