// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// synData is TCPI_OPT_SYN_DATA.
const synData = 32

// TestSpliceFastOpen: what a client sends with its SYN is TCP's, and comes first on
// a connection that is spliced.
func TestSpliceFastOpen(t *testing.T) {
	world := newWorld(t)
	// Clients and every listener, without a cookie (ip-sysctl.rst).
	if err := netns.Do(world.ns.FD(), func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("1543"), 0) // 0x607
	}); err != nil {
		t.Fatal(err)
	}
	w := world.splicing()
	const early, late = "with the SYN, ", "after it"
	for range 3 {
		fd := w.front.socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK)
		w.front.must(call{Op: "fastopen", FD: fd, Addr: netip.MustParseAddrPort(virtual4), Data: early})
		conn, _ := w.back.acceptNonblock(w.listeners[direct4])
		want := early + late
		w.front.with(fd, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && info.Options&synData == 0 {
				t.Error("no data went with the SYN")
			}
			return err
		})
		w.front.must(call{Op: "write", FD: fd, Data: late})
		got := ""
		for len(got) < len(want) {
			got += w.back.must(call{Op: "recvfrom", FD: conn}).Data
		}
		if got != want {
			t.Errorf("read %q, want %q", got, want)
		}
		w.front.close(fd)
		w.back.close(conn)
	}
	if tr := w.since(); tr.Opened != 3 || tr.Spliced != 3 {
		t.Errorf("traffic %+v", tr)
	}
}
