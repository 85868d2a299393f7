// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// TestDrain: queries that were received are answered, others wait in the socket
// for whoever has it too.
func TestDrain(t *testing.T) {
	w := newWorld(t, nil)
	at, arrived, release := gate(t)
	w.forward.use([]netip.AddrPort{at})
	c, err := miekg.Dial("udp", w.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteMsg(question("slow.example.org.", miekg.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-arrived
	if n := w.Pending(); n != 1 {
		t.Errorf("%d pending", n)
	}
	w.Drain()
	late, err := miekg.Dial("udp", w.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	// One that is being received this moment is answered still.
	deadline := time.Now().Add(time.Minute)
	for waiting(t, w.packets) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("queries are still taken after Drain")
		}
		if err := late.WriteMsg(question("web.", miekg.TypeA)); err != nil {
			t.Fatal(err)
		}
		if err := late.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		_, _ = late.ReadMsg()
	}
	release()
	if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("answer %v, %v", m, err)
	}
}

// waiting is the size of the datagram that is to be received next.
func waiting(t *testing.T, c *net.UDPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		ctlErr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		err = errors.Join(err, ctlErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
