// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// captured is a cgroup of the machine's in which a node has captured.
type captured struct {
	m   *machine
	dir string
}

// capture runs a node for a moment, with the installed program and the
// installed configuration but for the cgroup. It leaves its state in the kernel.
func (m *machine) capture() *captured {
	t := m.t
	t.Helper()
	root, err := cgroup.Root()
	if err != nil {
		t.Fatal(err)
	}
	c := &captured{m: m, dir: filepath.Join(root, fmt.Sprintf("meshproxy-packages-%d", os.Getpid()))}
	node := filepath.Join(c.dir, "node")
	if err := os.MkdirAll(node, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The kernel takes the process out of its cgroup a moment later.
		for deadline := time.Now().Add(10 * time.Second); ; <-time.After(10 * time.Millisecond) {
			err := errors.Join(ignoreGone(os.Remove(node)), ignoreGone(os.Remove(c.dir)))
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	m.sh(fmt.Sprintf(`
		sed -i '1i cgroup: {root: %s}' /etc/meshproxy/meshproxy.yaml
		echo $$ >%s/cgroup.procs
		ip address add 192.0.2.10/32 dev lo
		meshproxy ca init >/dev/null
		meshproxy run >/tmp/log 2>&1 & node=$!
		until grep msg=ready /tmp/log; do kill -0 $node || { cat /tmp/log; exit 1; }; sleep 0.05; done
		kill $node; wait $node`, c.dir, node))
	if n := c.programs(); n == 0 {
		t.Error("the node has attached nothing")
	}
	return c
}

// gone wants nothing of the node to be in the kernel.
func (c *captured) gone() {
	c.m.t.Helper()
	if n := c.programs(); n > 0 {
		c.m.t.Errorf("%d programs are attached", n)
	}
	c.m.says("", "find /sys/fs/bpf -name '*meshproxy*'")
}

// programs is how many are attached at connect(2).
func (c *captured) programs() int {
	c.m.t.Helper()
	dir, err := os.Open(c.dir)
	if err != nil {
		c.m.t.Fatal(err)
	}
	defer dir.Close()
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		c.m.t.Fatal(err)
	}
	return len(found.Programs)
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
