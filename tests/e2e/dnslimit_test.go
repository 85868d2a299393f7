// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

const dnsLimitMesh = `
nodes: [{name: a, address: 10.77.0.1}]
workloads:
  - {name: client, node: a, match: [{cgroup: "{{.Cgroup "a" "client"}}"}]}
  - {name: other, node: a, match: [{cgroup: "{{.Cgroup "a" "other"}}"}]}
`

// askMany sends a query for a name from each of many sockets, and waits until as
// many were answered SERVFAIL (2) as are to be.
const askMany = `import select,socket,struct
q=struct.pack('>HHHHHH',7,256,1,0,0,0)+b''.join(bytes([len(p)])+p for p in b'%s'.split(b'.'))+b'\0'+struct.pack('>HH',1,1)
socks=[socket.socket(socket.AF_INET,socket.SOCK_DGRAM) for _ in range(%d)]
for i,s in enumerate(socks):
    if i%%2: s.connect(('10.77.0.1',53)); s.send(q)
    else: s.sendto(q,('10.77.0.1',53))
failed=0
while failed<%d:
    ready=select.select(socks,[],[],60)[0]
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
	const queries, beyond = 200, 200 - 128
	l.python(a, "client", fmt.Sprintf(askMany, "www.outside.example", queries, beyond))
	refused := func() {
		t.Helper()
		l.eventually("queries beyond the limit are refused, and no others", func() error {
			_, text, err := l.get(a, "http://127.0.0.1:15020/metrics")
			if want := fmt.Sprintf("\nmeshproxy_dns_queries_total{result=\"refused\"} %d\n", beyond); err == nil && !strings.Contains(text, want) {
				err = fmt.Errorf("no %q", want)
			}
			return err
		})
	}
	refused()
	l.python(a, "other", fmt.Sprintf(askMany, "other.outside.example", 1, 0))
	if err := silent.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for asked := make([]byte, 512); ; {
		n, _, err := silent.ReadFrom(asked)
		if err != nil {
			t.Fatalf("another workload's query did not reach the resolver: %v", err)
		}
		if bytes.Contains(asked[:n], []byte("\x05other\x07outside")) {
			break
		}
	}
	refused()
}
