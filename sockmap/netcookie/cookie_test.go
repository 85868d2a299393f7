// SPDX-License-Identifier: Apache-2.0

package netcookie

import (
	"errors"
	"testing"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// TestProgram: the program tells what the socket tells, of every namespace. A
// kernel whose sockets don't tell has its turn in the tests of kernels.
func TestProgram(t *testing.T) {
	other, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	seen := map[uint64]bool{}
	for name, fd := range map[string]int{"own": netns.Own, "other": other.FD()} {
		asked, err := ask(netns.Direct{}, fd)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		again, err := ask(netns.Direct{}, fd)
		if err != nil || again != asked || seen[asked] {
			t.Errorf("%s: %d, then %d, %v", name, asked, again, err)
		}
		seen[asked] = true
		told, err := netns.Cookie(fd)
		if errors.Is(err, netns.ErrNoCookie) {
			continue
		}
		if err != nil || told != asked {
			t.Errorf("%s: the program says %d, the socket %d, %v", name, asked, told, err)
		}
		if of, err := Of(fd); err != nil || of != told {
			t.Errorf("%s: %d, %v", name, of, err)
		}
	}
}

func TestNoNamespace(t *testing.T) {
	if _, err := Of(1 << 20); err == nil {
		t.Error("a descriptor that is not open has a cookie")
	}
}
