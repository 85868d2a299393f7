// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
)

func (c *commands) services() *cobra.Command {
	var endpoints bool
	cmd := &cobra.Command{
		Use:   "services [NAME...]",
		Short: "Show the services that the node knows, and their endpoints",
		RunE: func(cmd *cobra.Command, names []string) error {
			return c.ask(func(cmd *cobra.Command, node *client.Client) error {
				all, err := node.Services(cmd.Context())
				if err != nil {
					return err
				}
				chosen, err := choose(all, names, "service", func(s *api.Service) string { return s.Name })
				if err != nil {
					return err
				}
				return c.show(chosen, func(p *page) {
					renderServices(p, chosen)
					if endpoints || len(names) > 0 {
						p.printf("\n")
						renderEndpoints(p, chosen)
					}
				})
			})(cmd, nil)
		},
	}
	cmd.Flags().BoolVarP(&endpoints, "endpoints", "e", false, "show the endpoints of all services")
	return cmd
}

// choose returns the items with the names, all without names.
func choose[T any](all []T, names []string, what string, nameOf func(*T) string) ([]T, error) {
	if len(names) == 0 {
		return all, nil
	}
	chosen := make([]T, 0, len(names))
	for _, name := range names {
		i := slices.IndexFunc(all, func(item T) bool { return nameOf(&item) == name })
		if i < 0 {
			return nil, &api.Error{Kind: api.KindNotFound, Message: fmt.Sprintf("no %s %q", what, name)}
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func renderServices(p *page, services []api.Service) {
	rows := make([][]cell, 0, len(services))
	for i := range services {
		s := &services[i]
		usable := 0
		for _, e := range s.Endpoints {
			if e.Health == api.HealthHealthy || e.Health == api.HealthUnknown {
				usable++
			}
		}
		health := cell{fmt.Sprintf("%d/%d", usable, len(s.Endpoints)), good}
		switch {
		case usable == 0:
			health.style = bad
		case usable < len(s.Endpoints):
			health.style = warn
		}
		rows = append(rows, []cell{
			{s.Name, strong}, text(portsLine(s.Ports)), text(strings.Join(s.VirtualIPs, " ")), health, text(s.Balance), text(s.Source),
		})
	}
	p.table([]string{"service", "ports", "virtual ips", "healthy", "balance", "source"}, rows)
}

func portsLine(ports []api.Port) string {
	list := make([]string, len(ports))
	for i, port := range ports {
		list[i] = fmt.Sprintf("%d/%s", port.Port, port.Protocol)
	}
	return strings.Join(list, " ")
}

var healthStyles = map[string]style{
	api.HealthHealthy: good, api.HealthUnhealthy: bad, api.HealthEjected: bad, api.HealthDraining: warn,
}

func renderEndpoints(p *page, services []api.Service) {
	var rows [][]cell
	for i := range services {
		for j := range services[i].Endpoints {
			e := &services[i].Endpoints[j]
			where := e.Node
			if e.Local {
				where += " (here)"
			}
			health := e.Health
			if e.HealthDetail != "" {
				health += ": " + e.HealthDetail
			}
			rows = append(rows, []cell{
				{services[i].Name, strong},
				text(endpointAddress(e)), text(where), text(e.Transport), text(e.Identity),
				text(fmt.Sprint(e.Active)),
				{health, healthStyles[e.Health]},
			})
		}
	}
	p.table([]string{"service", "endpoint", "node", "transport", "identity", "open", "health"}, rows)
}

func endpointAddress(e *api.Endpoint) string {
	host := e.Address
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	ports := make([]string, len(e.Ports))
	for i, port := range e.Ports {
		ports[i] = fmt.Sprint(port)
	}
	return host + ":" + strings.Join(ports, ",")
}
