// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

// TestStandardIdentity: whom clients without SNI meet follows the configuration
// in force.
func TestStandardIdentity(t *testing.T) {
	id := func(name string) spiffeid.ID {
		return spiffeid.RequireFromString("spiffe://mesh.internal/ns/default/sa/" + name)
	}
	web := &mesh.Workload{Name: name("web"), Identity: id("web")}
	db := &mesh.Workload{Name: name("db"), Identity: id("db")}
	for _, tc := range []struct {
		name      string
		workloads []*mesh.Workload
		standard  config.DefaultIdentity
		want      spiffeid.ID
	}{
		{"one workload", []*mesh.Workload{web}, config.DefaultIdentity{}, id("web")},
		{"several", []*mesh.Workload{web, db}, config.DefaultIdentity{}, spiffeid.ID{}},
		{"by workload", []*mesh.Workload{web, db}, config.DefaultIdentity{Workload: name("db")}, id("db")},
		{"by identity", []*mesh.Workload{web, db}, config.DefaultIdentity{ID: id("web")}, id("web")},
		{"a workload of another node", []*mesh.Workload{web, db}, config.DefaultIdentity{Workload: name("far")}, spiffeid.ID{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			standard := config.DefaultIdentity{}
			v := newViews(func() config.DefaultIdentity { return standard })
			s := snapshotOf(tc.workloads)
			v.current.Store(v.derive(s, 1, 1))
			standard = tc.standard // a reload
			v.current.Store(v.derive(s, 1, 1))
			got, ok := v.Local("")
			if got != tc.want || ok == tc.want.IsZero() {
				t.Errorf("got %s, %v, want %s", got, ok, tc.want)
			}
		})
	}
}
