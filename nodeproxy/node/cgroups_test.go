// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

func TestCgroupsOf(t *testing.T) {
	mount, err := cgroup.Root()
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(mount, fmt.Sprintf("meshproxy-node-test-%d", os.Getpid()))
	var made []string
	t.Cleanup(func() {
		for i := len(made) - 1; i >= 0; i-- {
			if err := os.Remove(made[i]); err != nil {
				t.Error(err)
			}
		}
	})
	// Other tests make cgroups beside these, and units are found wherever they lie.
	web := fmt.Sprintf("web%d", os.Getpid())
	for _, dir := range []string{
		"", web + ".service", web + ".service/deep", web + "@1.service", web + "@2.service", "plain", "plain/x", "plainer",
		"other.service", "other.service/" + web + ".service",
	} {
		made = append(made, filepath.Join(top, dir))
		if err := os.Mkdir(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := strings.TrimPrefix(top, mount)
	workloads := []*mesh.Workload{
		{Name: name("unit"), Selectors: []mesh.Selector{{Kind: mesh.SelectUnit, Value: web + ".service"}}},
		{Name: name("template"), Selectors: []mesh.Selector{{Kind: mesh.SelectUnit, Value: web + "@*.service"}}},
		{Name: name("path"), Selectors: []mesh.Selector{{Kind: mesh.SelectCgroup, Value: at + "/plain/"}}},
		{Name: name("prefix"), Selectors: []mesh.Selector{{Kind: mesh.SelectCgroupPrefix, Value: at + "/plain"}}},
		{Name: name("user"), Selectors: []mesh.Selector{{Kind: mesh.SelectUser, Value: "1"}}},
		{Name: name("absent"), Selectors: []mesh.Selector{{Kind: mesh.SelectCgroup, Value: at + "/nothing"}}},
	}
	got := hierarchy{mount: mount, root: mount}.cgroupsOf(workloads)
	want := map[mesh.Name][]string{
		// What is below another service was delegated to that one.
		name("unit"):     {at + "/" + web + ".service"},
		name("template"): {at + "/" + web + "@1.service", at + "/" + web + "@2.service"},
		name("path"):     {at + "/plain"},
		name("prefix"):   {at + "/plain", at + "/plainer"},
	}
	for _, list := range got {
		slices.Sort(list)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cgroups (-want +got):\n%s", diff)
	}
}
