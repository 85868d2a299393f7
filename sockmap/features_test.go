// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestFeaturesHere(t *testing.T) {
	if f := *probeFeatures(); f != (kernelFeatures{true, true, true, true, true, true}) {
		t.Errorf("features %+v of a kernel that has them all", f)
	}
}

// TestFallbacks: what an old kernel lacks is made up for. (That the programs
// load there is for tests on such kernels.)
func TestFallbacks(t *testing.T) {
	w := newWorld(t)
	w.opts.features = &kernelFeatures{}
	w.start()
	closed := w.workload("closed")
	closed.Egress = mesh.EgressRegisteredOnly
	w.apply(State{
		Workloads:    []Workload{w.workload("web"), closed},
		Destinations: []Destination{destination("240.240.0.1:80", "db"), destination("240.240.0.1:0", "db"), destination("[2001:2::1]:0", "db")},
	})
	web := w.process("web")
	if _, err := web.dial("240.240.0.1:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.accepted(unix.AF_INET); err != nil {
		t.Error(err)
	}
	for _, addr := range []string{"240.240.0.1:81", "[2001:2::1]:80", "[::ffff:240.240.0.1]:81"} {
		if _, err := web.dial(addr); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s: %v", addr, err)
		}
		if e := event[*Refused](t, w.Capture); e.Reason != ReasonUnknownPort || e.PID != 0 || e.Cgroup == 0 {
			t.Errorf("event %+v", e)
		}
	}
	if _, err := w.process("closed").dial("10.9.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	far := w.neighbour()
	w.serving("web", "0.0.0.0:80")
	if _, err := far.dial("10.8.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("plaintext from elsewhere: %v", err)
	}
	server, late := w.serving("web", "0.0.0.0:81")
	untouched(t, w.process("nobody"), "127.0.0.1:81", server, late)
	untouched(t, w.process("nobody"), "10.8.0.1:81", server, late)
}
