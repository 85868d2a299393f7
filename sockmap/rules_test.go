// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// TestRules: cgroups that exist when the rules come (decided here), and those
// that come later (decided in the kernel), belong to the same workload.
func TestRules(t *testing.T) {
	workload := func(name string, kind mesh.SelectorKind, value string) Workload {
		return Workload{Name: mesh.Name{Name: name}, Selectors: []mesh.Selector{{Kind: kind, Value: value}}}
	}
	long := strings.Repeat("x", 120)
	state := func(root string) State {
		return State{Workloads: []Workload{
			workload("exact", mesh.SelectCgroup, root+"/a.slice/exact.service"),
			workload("inner", mesh.SelectCgroup, root+"/a.slice/exact.service/inner"),
			workload("prefix", mesh.SelectCgroupPrefix, root+"/a.slice/pre-"),
			workload("longer", mesh.SelectCgroupPrefix, root+"/a.slice/pre-longer-"),
			workload("unit", mesh.SelectUnit, "unit.service"),
			workload("template", mesh.SelectUnit, "tmpl@*.service"),
			workload("instance", mesh.SelectUnit, "tmpl@one.service"),
			workload("escaped", mesh.SelectUnit, "memory.service"),
		}}
	}
	for _, test := range []struct{ path, want string }{
		{"/a.slice", ""},
		{"/a.slice/exact.service", "exact"},
		{"/a.slice/exact.service2", ""},
		{"/a.slice/exact.service/below", "exact"},
		{"/a.slice/exact.service/inner", "inner"},
		{"/a.slice/exact.service/inner/below", "inner"},
		{"/a.slice/pre-1.service", "prefix"},
		{"/a.slice/pre-1.service/below", "prefix"},
		{"/a.slice/pre-longer-1.service", "longer"},
		{"/a.slice/pre-1.service/pre-2", "prefix"},
		{"/unit.service", "unit"},
		{"/b.slice/b-c.slice/unit.service", "unit"},
		{"/unit.service/below", "unit"},
		{"/user@1000.service/unit.service", ""},
		{"/session-1.scope/unit.service", ""},
		{"/user@1000.service/app.slice/unit.service", ""},
		{"/tmpl@two.service", "template"},
		{"/tmpl@10.0.0.1.service", "template"},
		{"/tmpl@one.service", "instance"},
		{"/tmpl@.service", ""},
		{"/tmpl.service", ""},
		{"/tmpl@two.socket", ""},
		{"/_memory.service", "escaped"},
		{"/memory.service", ""},
		{fmt.Sprintf("/%s.slice/%s.slice/%s.slice/unit.service", long, long, long), "unit"},
		{fmt.Sprintf("/%s.scope/%s.slice/%s.slice/unit.service", long, long, long), ""},
		{fmt.Sprintf("/%s.slice/%s.slice/%s.scope/unit.service", long, long, long), ""},
	} {
		t.Run(test.path[:min(60, len(test.path))], func(t *testing.T) {
			w := newWorld(t)
			w.open()
			find := func() string {
				t.Helper()
				for dir := w.dir + test.path; len(dir) >= len(w.dir); dir = filepath.Dir(dir) {
					id, err := cgroup.ID(dir)
					if err != nil {
						t.Fatal(err)
					}
					var workload uint32
					if w.cgroups.m.Lookup(id, &workload) == nil {
						return w.names.name(workload).Name
					}
				}
				return ""
			}
			w.apply(state(w.path))
			w.cgroup(test.path)
			if got := find(); got != test.want {
				t.Errorf("a new one belongs to %q, want %q", got, test.want)
			}
			w.apply(State{})
			if got := find(); got != "" {
				t.Errorf("without rules it belongs to %q", got)
			}
			w.apply(state(w.path))
			if got := find(); got != test.want {
				t.Errorf("an old one belongs to %q, want %q", got, test.want)
			}
		})
	}
}
