// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/bpf"
)

// TestFormerDirects: what was opened by the programs of another layout goes on by
// TCP, and is known and closed by those that follow, whose numbers are others.
func TestFormerDirects(t *testing.T) {
	w := newSplicing(t)
	gone := w.pair(virtual4, direct4)
	gone.closeClient()
	gone.closeServer()
	pairs := map[string]*pair{direct4: w.pair(virtual4, direct4), direct6: w.pair(virtual6, direct6)}
	for _, p := range pairs {
		p.exchange(t, 1000)
	}
	known := func(w *splicing, n int) []DirectConnection {
		t.Helper()
		var list []DirectConnection
		w.eventually(fmt.Sprintf("%d connections", n), func() bool {
			var err error
			if list, err = w.DirectConnections(); err != nil {
				t.Fatal(err)
			}
			return len(list) == n
		})
		for _, d := range list {
			if d.Source != name("front") || d.Service != name("db") || d.Endpoint.Workload != name("back") ||
				pairs[d.Endpoint.Addr.String()] == nil || !d.Established || !d.Spliced {
				t.Errorf("connection %+v", d)
			}
		}
		return list
	}
	before := known(w, 2)
	splices, err := w.kernel.maps[bpf.CaptureMapSplices].Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer splices.Close()
	var began bpf.CaptureSplice
	if err := splices.Lookup(uint32(pairs[direct4].client), &began); err != nil || began.Fallback != 0 {
		t.Fatalf("state %+v, %v", began, err)
	}

	w.close()
	w.age()
	w.open()
	w.serveAgain()
	s := w.directState(Allow)
	s.Workloads = append([]Workload{w.workload("another")}, s.Workloads...)
	w.apply(s)
	after := known(w, 2)
	for _, b := range before {
		for _, a := range after {
			if a.Cookie == b.Cookie && (a.Client != b.Client || a.Dialled != b.Dialled || a.Endpoint != b.Endpoint) {
				t.Errorf("%+v was %+v", a, b)
			}
		}
	}
	for _, p := range pairs {
		p.exchange(t, 1000)
		for _, fd := range []int{p.client, p.server} {
			var s bpf.CaptureSplice
			if err := splices.Lookup(uint32(fd), &s); err != nil || s.Fallback != bpf.CaptureFallbackFALLBACK_PAUSED {
				t.Errorf("state %+v, %v", s, err)
			}
		}
	}

	pairs[direct6].closeClient()
	pairs[direct6].closeServer()
	left := known(w, 1)
	if err := w.CloseDirect(&left[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(pairs[direct4].client, []byte("x")); err == nil {
		t.Error("the client can still write")
	}
	known(w, 0)
}

// TestKeptFormats: the maps that are read across layouts. When this fails because a
// structure has changed, its map takes another name, and this the new format.
func TestKeptFormats(t *testing.T) {
	for _, tc := range []struct {
		name string
		of   any
		want string
	}{
		{"directs", bpf.CaptureDirect{}, "Netns 0 EndpointNetns 8 Opened 16 Workload 24 Service 28 Endpoint 32 Flags 36" +
			" Dialled 40 Local 60 Remote 80 Pad 100 Sockets 104 Sent 120 Received 128 Closed 136 Answered 140, 144 bytes"},
		{"directs", bpf.CaptureAddress{}, "Ip 0 Port 16 Pad 18, 20 bytes"},
		{"names", bpf.CaptureName{}, "Bytes 0, 320 bytes"},
		{"flows", bpf.CaptureFlowKey{}, "Netns 0 Client 8 Local 28, 48 bytes"},
	} {
		var got []string
		of := reflect.TypeOf(tc.of)
		for i := range of.NumField() {
			if f := of.Field(i); f.Name != "_" {
				got = append(got, fmt.Sprintf("%s %d", f.Name, f.Offset))
			}
		}
		if got := fmt.Sprintf("%s, %d bytes", strings.Join(got, " "), of.Size()); got != tc.want {
			t.Errorf("%s has %s: %s, want %s", tc.name, of.Name(), got, tc.want)
		}
	}
	if bpf.CaptureMapDirects != "directs" || bpf.CaptureMapNames != "names" || bpf.CaptureMapFlows != "flows" {
		t.Errorf("the maps are %s, %s and %s", bpf.CaptureMapDirects, bpf.CaptureMapNames, bpf.CaptureMapFlows)
	}
	if switchMap != "switch" || bpf.CaptureMapNode != "node" || bpf.CaptureSplicingSPLICING_OFF != 0 {
		t.Errorf("splicing is off by %d in map %s, found by %s", bpf.CaptureSplicingSPLICING_OFF, bpf.CaptureMapNode, switchMap)
	}
	flags := map[bpf.CaptureDirectFlags]bpf.CaptureDirectFlags{
		bpf.CaptureDirectFlagsDIRECT_ADDRESSED: 1, bpf.CaptureDirectFlagsDIRECT_IPV6: 4, bpf.CaptureDirectFlagsDIRECT_SPLICED: 8,
	}
	for got, want := range flags {
		if got != want {
			t.Errorf("a flag is %d, want %d", got, want)
		}
	}
}
