// SPDX-License-Identifier: Apache-2.0

package node

import (
	"strconv"

	"github.com/meshproxy/meshproxy/nodeproxy/dns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// asker names the workload that makes a DNS query, so that limits are each
// workload's own however many sockets it opens: all share 127.0.0.1, and a
// query has no flow on record. The kernel knows whose socket it is. Where it
// does not say (the socket is closed by now, the kernel lacks udp_diag), the
// client is its address.
func (n *Node) asker(a dns.Asker) string {
	cookie, err := strconv.ParseUint(a.Scope, 10, 64)
	if err != nil {
		return a.String()
	}
	ns := n.namespaces.get(cookie)
	if ns == nil {
		return a.String()
	}
	diag, err := ns.sockets()
	if err != nil {
		return a.String()
	}
	protocol := sockdiag.UDP
	if a.Network == "tcp" {
		protocol = sockdiag.TCP
	}
	owner, err := diag.Owner(protocol, a.Address, a.Server)
	if err != nil {
		return a.String()
	}
	if w, ok := n.capture.OwnerWorkload(owner); ok {
		return "workload " + w.String()
	}
	return a.String()
}

// sockets is where the namespace's sockets are looked up; it lives as long as
// the namespace is open.
func (n *namespace) sockets() (*sockdiag.Socket, error) {
	n.diagMu.Lock()
	defer n.diagMu.Unlock()
	if n.diag != nil {
		return n.diag, nil
	}
	s, err := sockdiag.OpenBy(n.way, n.fd())
	if err != nil {
		return nil, err
	}
	n.diag = s
	return s, nil
}

func (n *namespace) closeSockets() {
	n.diagMu.Lock()
	defer n.diagMu.Unlock()
	if n.diag != nil {
		n.diag.Close()
	}
}
