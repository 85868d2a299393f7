// SPDX-License-Identifier: Apache-2.0

package upstreams

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	admin "github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// catalog is what Consul is filled with: services behind sidecars on nodes
// without agents, as many to a node as a VM of many services has.
type catalog struct {
	Options
	client *api.Client
}

// perNode is how many services a node has an instance of each.
const perNode = 20

func service(i int) string { return fmt.Sprintf("svc-%04d", i) }

func localService(i int) string { return fmt.Sprintf("local-%02d", i) }

func (c *catalog) place(i, endpoint int) (node, address string) {
	n := (i/perNode)*c.Endpoints + endpoint
	return fmt.Sprintf("node-%04d", n), fmt.Sprintf("10.%d.%d.%d", 100+n>>16, n>>8&255, n&255)
}

// row is a sidecar's registration with its check.
func (c *catalog) row(i, endpoint int, status string) *api.CatalogRegistration {
	node, address := c.place(i, endpoint)
	id := service(i) + "-sidecar-proxy"
	return &api.CatalogRegistration{
		Node: node, Address: address,
		Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: id, Service: id, Port: 21000 + i%perNode,
			Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: service(i), DestinationServiceID: service(i), LocalServicePort: 8000},
		},
		Checks: api.HealthChecks{{Node: node, CheckID: id, Name: id, Status: status, ServiceID: id}},
	}
}

func (c *catalog) fill() error {
	const writers = 16
	work, failed := make(chan func() error), make(chan error, writers)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for do := range work {
				if err := do(); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for i := range c.Services {
		for e := range c.Endpoints {
			work <- func() error {
				node, address := c.place(i, e)
				_, err := c.client.Catalog().Register(&api.CatalogRegistration{
					Node: node, Address: address, Service: &api.AgentService{ID: service(i), Service: service(i), Port: 8000 + i%perNode},
				}, nil)
				if err == nil {
					_, err = c.client.Catalog().Register(c.row(i, e, api.HealthPassing), nil)
				}
				return err
			}
		}
	}
	close(work)
	wg.Wait()
	for i := range c.Workloads {
		if err := c.client.Agent().ServiceRegister(&api.AgentServiceRegistration{Name: localService(i), Port: FirstPort + i}); err != nil {
			return fmt.Errorf("register local service: %w", err)
		}
	}
	select {
	case err := <-failed:
		return fmt.Errorf("fill the catalog: %w", err)
	default:
		return nil
	}
}

// change turns the health of one endpoint around and returns how long it takes
// until a snapshot is in force in which it is. Nothing else changes meanwhile.
func (c *catalog) change(ctx context.Context, node *client.Client, i int) (time.Duration, error) {
	before, err := node.Status(ctx)
	if err != nil {
		return 0, err
	}
	status, health := api.HealthCritical, admin.HealthUnhealthy
	if i%2 == 1 {
		status, health = api.HealthPassing, admin.HealthHealthy
	}
	number, endpoint := (i/2)*37%c.Services, (i/2)%c.Endpoints
	row := c.row(number, endpoint, status)
	row.Service = nil
	row.SkipNodeUpdate = true
	began := time.Now()
	if _, err := c.client.Catalog().Register(row, nil); err != nil {
		return 0, err
	}
	last, at := before.Snapshot.Version, began
	err = testnet.Until(ctx, func() error {
		now, err := node.Status(ctx)
		if err != nil {
			return err
		}
		if now.Snapshot.Version == last {
			return fmt.Errorf("snapshot %d still in force", last)
		}
		// What it says about the endpoint is read when the clock has stopped.
		last, at = now.Snapshot.Version, time.Now()
		return isOf(ctx, node, service(number), row.Address, health)
	})
	return at.Sub(began), err
}

// isOf expects an endpoint of a service to be of a health.
func isOf(ctx context.Context, node *client.Client, service, address, health string) error {
	all, err := node.Services(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].Name != service {
			continue
		}
		for _, e := range all[i].Endpoints {
			if e.Address == address && e.Health == health {
				return nil
			}
		}
	}
	return fmt.Errorf("%s at %s is not %s", service, address, health)
}
