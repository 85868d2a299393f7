// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// cgroupRoot is the cgroup that the hooks are attached to.
type cgroupRoot struct {
	dir  *os.File
	id   uint64
	path string // within the hierarchy, "" for its root
}

func openRoot(dir string) (*cgroupRoot, error) {
	path, err := cgroup.Within(dir)
	if err != nil {
		return nil, fmt.Errorf("open cgroup root: %w", err)
	}
	id, err := cgroup.ID(dir)
	if err != nil {
		return nil, fmt.Errorf("open cgroup root: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open cgroup root: %w", err)
	}
	return &cgroupRoot{dir: f, id: id, path: strings.TrimSuffix(path, "/")}, nil
}

// settle waits until every cgroup that was being made when it was called can
// be seen: creation holds cgroup_mutex from before the tracepoint until after
// the directory is visible, and so does a query for programs (cgroup_bpf_query
// in kernel/bpf/cgroup.c), which needs no write access to the hierarchy.
func (r *cgroupRoot) settle() error {
	_, err := link.QueryPrograms(link.QueryOptions{Target: int(r.dir.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		return fmt.Errorf("wait for new cgroups: %w", err)
	}
	return nil
}
