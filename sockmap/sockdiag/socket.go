// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// patience bounds how long the kernel may take for one part of an answer. It
// answers while it handles the request, so only a lost answer takes longer.
const patience = 10 // seconds

// Socket asks about one network namespace. It may be used by several
// goroutines, one request at a time. It keeps the namespace alive.
type Socket struct {
	handle *nl.SocketHandle
}

// Open opens a socket in the namespace of nsFD, or in the caller's own with
// netns.Own.
func Open(nsFD int) (*Socket, error) {
	var s *nl.NetlinkSocket
	err := netns.Do(nsFD, func() (err error) {
		s, err = nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_INET_DIAG)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open inet_diag socket: %w", err)
	}
	if err := s.SetReceiveTimeout(&unix.Timeval{Sec: patience}); err != nil {
		s.Close()
		return nil, fmt.Errorf("set timeout of inet_diag socket: %w", err)
	}
	return &Socket{handle: &nl.SocketHandle{Socket: s}}, nil
}

// Close closes the socket.
func (s *Socket) Close() { s.handle.Close() }

// Listeners returns the TCP sockets that listen in the namespace. Those of
// MPTCP are among them: each has a TCP socket underneath.
func (s *Socket) Listeners() ([]Listener, error) {
	return s.listeners(Filter{})
}

// LocalBind returns the listeners on a port, which tell what addresses it is
// bound to.
func (s *Socket) LocalBind(port uint16) ([]Listener, error) {
	return s.listeners(Filter{LocalPort: port})
}

func (s *Socket) listeners(f Filter) ([]Listener, error) {
	var found []Listener
	f.States = StateListen
	err := s.dump(f, func(m *message) {
		found = append(found, Listener{
			Address:  m.local,
			IPv6:     m.family == unix.AF_INET6,
			V6Only:   m.v6only,
			Ifindex:  m.ifindex,
			CgroupID: m.cgroup,
			Inode:    m.inode,
			Cookie:   m.cookie,
			UID:      m.uid,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list listeners: %w", err)
	}
	return found, nil
}

// Connections returns the connections that pass the filter.
func (s *Socket) Connections(f Filter) ([]Connection, error) {
	if f.States == 0 {
		f.States = StatesOpen
	}
	// A listener is no connection.
	f.States &^= StateListen
	var found []Connection
	err := s.dump(f, func(m *message) {
		found = append(found, Connection{
			Local:    m.local,
			Remote:   m.remote,
			IPv6:     m.family == unix.AF_INET6,
			State:    m.state,
			Ifindex:  m.ifindex,
			CgroupID: m.cgroup,
			Inode:    m.inode,
			Cookie:   m.cookie,
			UID:      m.uid,
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return found, nil
}

// dump calls fn for each socket that passes the filter. The kernel wants to be
// asked for each address family alone.
func (s *Socket) dump(f Filter, fn func(*message)) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		body := request(family, f.States, sockID{})
		if code := f.bytecode(); len(code) > 0 {
			body = append(body, nl.NewRtAttr(inetDiagReqBytecode, code).Serialize()...)
		}
		// Not AddData: the library puts raw data behind attributes.
		req.AddRawData(body)
		var broken error
		err := s.execute(req, func(raw []byte) bool {
			m, err := parse(raw)
			if err != nil {
				broken = err
				return false
			}
			fn(m)
			return true
		})
		if err == nil {
			err = broken
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Socket) execute(req *nl.NetlinkRequest, fn func([]byte) bool) error {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: s.handle}
	return req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, fn)
}
