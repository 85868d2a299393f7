// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"net/netip"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
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
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
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
	if err := late.WriteMsg(question("web.", miekg.TypeA)); err != nil {
		t.Fatal(err)
	}
	if err := late.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if m, err := late.ReadMsg(); err == nil {
		t.Errorf("an answer after Drain: %v", m)
	}
	release()
	if m, err := c.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("answer %v, %v", m, err)
	}
}
