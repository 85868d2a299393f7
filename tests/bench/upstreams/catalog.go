// SPDX-License-Identifier: Apache-2.0

package upstreams

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

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
// until a new snapshot is in force. Nothing else changes meanwhile.
func (c *catalog) change(ctx context.Context, node *client.Client, i int) (time.Duration, error) {
	before, err := node.Status(ctx)
	if err != nil {
		return 0, err
	}
	status := api.HealthCritical
	if i%2 == 1 {
		status = api.HealthPassing
	}
	row := c.row((i/2)*37%c.Services, (i/2)%c.Endpoints, status)
	row.Service = nil
	row.SkipNodeUpdate = true
	began := time.Now()
	if _, err := c.client.Catalog().Register(row, nil); err != nil {
		return 0, err
	}
	err = testnet.Until(ctx, func() error {
		now, err := node.Status(ctx)
		if err == nil && now.Snapshot.Version == before.Snapshot.Version {
			err = fmt.Errorf("snapshot %d still in force", now.Snapshot.Version)
		}
		return err
	})
	return time.Since(began), err
}
