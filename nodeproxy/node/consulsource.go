// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// openConsul prepares the source consul, if there is to be one.
func (n *Node) openConsul(c *config.Config, last *mesh.BuildInput) error {
	if !c.Sources.Consul.Enabled {
		return nil
	}
	agent, err := consulagent.New(c.Consul, consul.MaxConnections)
	if err != nil {
		return err
	}
	o := c.ConsulOptions()
	o.Agent, o.Last, o.Listeners, o.Logger = agent, last, consulListeners(), n.log
	n.consul = consul.New(o)
	return nil
}

// consulListeners finds the sockets that listen in the node's own network
// namespace, and whose they are. It is for one goroutine.
func consulListeners() func() ([]consul.Listener, error) {
	paths := make(map[uint64]string) // the id of a cgroup is never another's
	return func() ([]consul.Listener, error) {
		s, err := sockdiag.Open(netns.Own)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		found, err := s.Listeners()
		if err != nil {
			return nil, err
		}
		before := paths
		paths = make(map[uint64]string, len(before))
		list := make([]consul.Listener, 0, len(found))
		for _, l := range found {
			path, known := paths[l.CgroupID]
			if !known {
				path, known = before[l.CgroupID]
			}
			if !known && l.CgroupID != 0 {
				if path, err = cgroup.Path(l.CgroupID); err != nil && !errors.Is(err, cgroup.ErrGone) {
					return nil, err
				}
			}
			paths[l.CgroupID] = path
			list = append(list, consul.Listener{Address: l.Address, Cgroup: path})
		}
		return list, nil
	}
}
