// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// listening returns the TCP listeners of the attached namespaces and whose they
// are, 0 for those of nobody we know.
func (c *Capture) listening() (map[bpf.CapturePortKey]uint32, error) {
	found := make(map[bpf.CapturePortKey]uint32)
	for cookie, ns := range c.namespaces {
		if ns.fd == nil {
			continue // of an earlier process; nobody asks there meanwhile
		}
		s, err := sockdiag.OpenBy(c.opts.Namespaces, ns.entry())
		if err != nil {
			return nil, fmt.Errorf("list listeners: %w", err)
		}
		listeners, err := s.Listeners()
		s.Close()
		if err != nil {
			return nil, fmt.Errorf("list listeners: %w", err)
		}
		for i := range listeners {
			l := &listeners[i]
			if c.opts.Ports.has(l.Address.Port()) {
				continue // whoever owns the proxy's process
			}
			found[bpf.CapturePortKey{Netns: cookie, Address: toAddress(l.Address)}] = c.owner(l)
		}
	}
	return found, nil
}

// owner returns the workload that a listener belongs to: that of the cgroup in
// which its socket was made, or of its user.
func (c *Capture) owner(l *sockdiag.Listener) uint32 {
	w, ok := c.cgroups.seen[l.CgroupID]
	if !ok {
		w = c.cgroups.find(l.CgroupID)
	}
	if w == 0 {
		w = c.rules.users[l.UID]
	}
	return w
}
