// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/internal/netlinkio"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Socket asks about one network namespace. It may be used by several
// goroutines, one request at a time. It keeps the namespace alive.
type Socket struct {
	mu sync.Mutex
	fd int
}

// Open opens a socket in the namespace of nsFD, or in the caller's own with
// netns.Own.
func Open(nsFD int) (*Socket, error) { return OpenBy(netns.Direct{}, nsFD) }

// OpenBy is Open for who can't enter the namespace by itself.
func OpenBy(way netns.Opener, nsFD int) (*Socket, error) {
	fd, err := way.Socket(nsFD, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open inet_diag socket: %w", err)
	}
	if err := netlinkio.Prepare(fd); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open inet_diag socket: %w", err)
	}
	return &Socket{fd: fd}, nil
}

// Close closes the socket.
func (s *Socket) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	s.fd = -1
}

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
		body := request(family, unix.IPPROTO_TCP, f.States, sockID{})
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
	s.mu.Lock()
	defer s.mu.Unlock()
	return netlinkio.Execute(s.fd, req, fn)
}
