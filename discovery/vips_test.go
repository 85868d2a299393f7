// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

var epoch = time.Unix(1700000000, 0)

func name(s string) mesh.Name { return mesh.ParseName(s) }

func mustAssign(t *testing.T, v *vips, n string, now time.Time) netip.Addr {
	t.Helper()
	a, err := v.assign(name(n), now)
	if err != nil {
		t.Fatal(err)
	}
	if !v.contains(a) {
		t.Fatalf("%s is outside of %s", a, v.prefix)
	}
	return a
}

func TestVIPsAreStable(t *testing.T) {
	for _, prefix := range []string{"240.240.0.0/16", "2001:2::/48", "10.0.0.0/29", "2001:db8::/120"} {
		t.Run(prefix, func(t *testing.T) {
			a, b := newVIPs(netip.MustParsePrefix(prefix), time.Hour), newVIPs(netip.MustParsePrefix(prefix), time.Hour)
			seen := map[netip.Addr]bool{}
			for i := range 6 {
				n := fmt.Sprintf("svc%d", i)
				x := mustAssign(t, a, n, epoch)
				if seen[x] {
					t.Errorf("%s given out twice", x)
				}
				seen[x] = true
				if y := mustAssign(t, a, n, epoch); x != y {
					t.Errorf("second time %s, first %s", y, x)
				}
				if y := mustAssign(t, b, n, epoch); x != y {
					t.Errorf("another node gives %s, this one %s", y, x)
				}
			}
		})
	}
}

func TestVIPsRestore(t *testing.T) {
	p := netip.MustParsePrefix("10.0.0.0/24")
	v := newVIPs(p, time.Hour)
	want := map[string]netip.Addr{}
	for i := range 100 { // enough for probing to matter
		n := fmt.Sprintf("svc%d", i)
		want[n] = mustAssign(t, v, n, epoch)
	}
	v.release(name("svc3"), epoch)
	again := newVIPs(p, time.Hour)
	for _, a := range v.assignments() {
		again.restore(a)
	}
	again.restore(Assignment{Service: name("x"), Address: netip.MustParseAddr("192.0.2.1")}) // of another range
	for i := 99; i >= 0; i-- {                                                               // in another order
		n := fmt.Sprintf("svc%d", i)
		if got := mustAssign(t, again, n, epoch); got != want[n] {
			t.Errorf("%s has %s after the restart, had %s", n, got, want[n])
		}
	}
	if again.byName[name("x")] != nil {
		t.Error("an address outside the range was restored")
	}
}

func TestVIPsQuarantine(t *testing.T) {
	v := newVIPs(netip.MustParsePrefix("10.0.0.0/29"), time.Hour) // 6 addresses
	first := map[string]netip.Addr{}
	for i := range 5 {
		n := fmt.Sprint(i)
		first[n] = mustAssign(t, v, n, epoch)
	}
	v.release(name("2"), epoch)
	v.release(name("3"), epoch.Add(time.Minute))
	five := mustAssign(t, v, "five", epoch.Add(2*time.Minute)) // the sixth address
	if five == first["2"] || five == first["3"] {
		t.Error("an address in quarantine was given out")
	}
	// The service that comes back gets its own.
	if got := mustAssign(t, v, "3", epoch.Add(3*time.Minute)); got != first["3"] {
		t.Errorf("returning service has %s, had %s", got, first["3"])
	}
	// Nothing else is left: the quarantine ends early.
	if got := mustAssign(t, v, "six", epoch.Add(4*time.Minute)); got != first["2"] {
		t.Errorf("got %s, want %s, which was released", got, first["2"])
	}
	if _, err := v.assign(name("seven"), epoch.Add(5*time.Minute)); !errors.Is(err, errRangeFull) {
		t.Errorf("full range: %v", err)
	}
	v.release(name("six"), epoch.Add(6*time.Minute))
	v.expire(epoch.Add(65 * time.Minute))
	if v.hasRoom() {
		t.Error("quarantine over too early")
	}
	v.expire(epoch.Add(66 * time.Minute))
	if !v.hasRoom() || v.released != 0 {
		t.Error("quarantine does not end")
	}
}

func TestVIPsYieldToClaims(t *testing.T) {
	v := newVIPs(netip.MustParsePrefix("10.0.0.0/24"), time.Hour)
	had := mustAssign(t, v, "web", epoch)
	if loser := v.claim(had, name("db")); loser != name("web") {
		t.Errorf("loser %q", loser)
	}
	if got := mustAssign(t, v, "web", epoch); got == had {
		t.Error("the claimed address was given out again")
	}
	v.unclaim(had, name("db"))
	if len(v.claimed) != 0 {
		t.Error("claim remains")
	}
	if loser := v.claim(mustAssign(t, v, "own", epoch), name("own")); !loser.IsZero() {
		t.Errorf("a service loses its address to itself: %q", loser)
	}
}
