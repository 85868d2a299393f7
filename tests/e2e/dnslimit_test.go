// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net"
	"testing"
)

const dnsLimitMesh = `
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: other, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}]}
`

// askMany sends a query from each of many sockets, and prints how many were
// answered SERVFAIL (2) before answers stop coming.
const askMany = `import select,socket,struct
q=struct.pack('>HHHHHH',7,256,1,0,0,0)+b''.join(bytes([len(p)])+p for p in b'www.outside.example'.split(b'.'))+b'\0'+struct.pack('>HH',1,1)
socks=[socket.socket(socket.AF_INET,socket.SOCK_DGRAM) for _ in range(%d)]
for i,s in enumerate(socks):
    if i%%2: s.connect(('10.77.0.1',53)); s.send(q)
    else: s.sendto(q,('10.77.0.1',53))
failed=0
while True:
    ready=select.select(socks,[],[],0.5)[0]
    if not ready: break
    failed+=sum(s.recv(4096)[3]&15==2 for s in ready)
print(failed)`

// TestDNSLimits: queries that wait for a resolver are limited per workload,
// whichever sockets they come from; one that floods does not keep the names of
// others from being asked for.
func TestDNSLimits(t *testing.T) {
	l := newLab(t, dnsLimitMesh, "a")
	a := l.net.Host("a")
	// A resolver that takes its time.
	var silent net.PacketConn
	if err := a.Do(func() (err error) { silent, err = net.ListenPacket("udp", "10.77.0.1:53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l.start("a", "dns: {upstreams: [10.77.0.1]}\n")
	if got := l.python(a, "client", fmt.Sprintf(askMany, 200)); got != "72" {
		t.Errorf("%s of 200 queries were refused, want what is beyond 128", got)
	}
	if got := l.python(a, "other", fmt.Sprintf(askMany, 1)); got != "0" {
		t.Errorf("another workload's query was refused: %s", got)
	}
}
