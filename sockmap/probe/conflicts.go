// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// queryEffective is BPF_F_QUERY_EFFECTIVE: programs of ancestors count too.
const queryEffective = 1

// conflictChecks look for other people's programs where ours go.
func conflictChecks(o Options) []check {
	return []check{
		{
			name: "other cgroup programs",
			consequence: "They run beside meshproxy's. One that redirects connections as well, like Cilium's kube-proxy replacement, may hide " +
				"destinations from the mesh or undo its choice: then match endpoints, or restrict it to containers (socketLB.hostNamespaceOnly).",
			look: func() (string, error) { return otherCgroupPrograms(o) },
		},
		{
			name:        "other sk_lookup programs",
			consequence: "They run beside meshproxy's in this network namespace; a socket that one of them chooses for a workload's port may win.",
			look:        func() (string, error) { return otherLookupPrograms(o) },
		},
	}
}

func otherCgroupPrograms(o Options) (string, error) {
	root := o.CgroupRoot
	if root == "" {
		var err error
		if root, err = cgroup.Root(); err != nil {
			return "", err
		}
	}
	dir, err := os.Open(root)
	if err != nil {
		return "", fmt.Errorf("open cgroup: %w", err)
	}
	defer dir.Close()
	own := ownLinks(o.BPFFS)
	var others []string
	for _, p := range programs {
		if p.typ == ebpf.SkLookup {
			continue
		}
		result, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: p.attach, QueryFlags: queryEffective})
		if err != nil {
			return "", inconclusive(err)
		}
		for _, a := range result.Programs {
			if name := programName(a.ID); !own[a.ID] && !strings.HasPrefix(name, probeName+" ") {
				others = append(others, p.name+" "+name)
			}
		}
	}
	return listed(others)
}

func otherLookupPrograms(o Options) (string, error) {
	ns, err := netns.OfThread()
	if err != nil {
		return "", err
	}
	defer ns.Close()
	result, err := link.QueryPrograms(link.QueryOptions{Target: ns.FD(), Attach: ebpf.AttachSkLookup})
	if err != nil {
		return "", inconclusive(err)
	}
	own := ownLinks(o.BPFFS)
	var others []string
	for _, a := range result.Programs {
		if !own[a.ID] {
			others = append(others, programName(a.ID))
		}
	}
	return listed(others)
}

// inconclusive hides what kind of error it is: without privileges, the library
// says that the kernel does not support queries, which all do since 4.15.
func inconclusive(err error) error { return fmt.Errorf("ask for programs: %v", err) }

func listed(others []string) (string, error) {
	if len(others) == 0 {
		return "none", nil
	}
	slices.Sort(others)
	return strings.Join(others, ", "), noted("there are other programs")
}

// ownLinks returns the programs of the links that meshproxy has pinned, of
// whatever instance and layout.
func ownLinks(bpffs string) map[ebpf.ProgramID]bool {
	own := map[ebpf.ProgramID]bool{}
	_ = filepath.WalkDir(filepath.Join(bpffs, "meshproxy"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Base(filepath.Dir(path)) != "links" {
			return nil
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil
		}
		defer l.Close()
		if info, err := l.Info(); err == nil {
			own[info.Program] = true
		}
		return nil
	})
	return own
}

func programName(id ebpf.ProgramID) string {
	name := fmt.Sprintf("(id %d)", id)
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return name
	}
	defer p.Close()
	if info, err := p.Info(); err == nil && info.Name != "" {
		name = info.Name + " " + name
	}
	return name
}
