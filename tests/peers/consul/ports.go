// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// ports of an agent.
type ports struct {
	HTTP    uint16 `json:"http"`
	GRPC    uint16 `json:"grpc"`
	DNS     uint16 `json:"dns"`
	Server  uint16 `json:"server"`
	SerfLAN uint16 `json:"serf_lan"`
	SerfWAN int    `json:"serf_wan"`
	GRPCTLS int    `json:"grpc_tls"`
	HTTPS   int    `json:"https"`
}

// choosePorts: on a host those that Consul's users have, since nobody else is
// there; on this machine free ones.
func choosePorts(host *testnet.Host) (p ports, err error) {
	p = ports{HTTP: 8500, GRPC: 8502, DNS: 8600, Server: 8300, SerfLAN: 8301, SerfWAN: -1, GRPCTLS: -1, HTTPS: -1}
	if host != nil {
		return p, nil
	}
	for _, to := range []*uint16{&p.HTTP, &p.GRPC, &p.DNS, &p.Server, &p.SerfLAN} {
		if *to, err = FreePort(); err != nil {
			return p, err
		}
	}
	return p, nil
}

var errNoPort = errors.New("find a free port: too many are taken")

// chosen has the ports that FreePort has given, lest two get the same one before
// the first is listened on.
var chosen sync.Map

// FreePort finds a port of loopback that is free for TCP and UDP, another one each
// time. It lies below those that the kernel gives to clients, one of which might
// take it before it is listened on.
func FreePort() (uint16, error) {
	for range 100 {
		port := uint16(12000 + rand.IntN(20000))
		if _, before := chosen.LoadOrStore(port, true); before {
			continue
		}
		at := netip.AddrPortFrom(loopback, port)
		tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
		if err != nil {
			continue
		}
		udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		_ = tcp.Close()
		if err != nil {
			continue
		}
		_ = udp.Close()
		return port, nil
	}
	return 0, errNoPort
}
