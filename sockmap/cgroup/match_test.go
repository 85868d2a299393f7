// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"testing"

	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestMatch(t *testing.T) {
	cgroup := func(v string) mesh.Selector { return mesh.Selector{Kind: mesh.SelectCgroup, Value: v} }
	prefix := func(v string) mesh.Selector { return mesh.Selector{Kind: mesh.SelectCgroupPrefix, Value: v} }
	unit := func(v string) mesh.Selector { return mesh.Selector{Kind: mesh.SelectUnit, Value: v} }

	tests := []struct {
		name     string
		selector mesh.Selector
		path     string
		depth    int
	}{
		{"cgroup itself", cgroup("/a/web.service"), "/a/web.service", 2},
		{"cgroup below", cgroup("/a/web.service"), "/a/web.service/payload/x", 2},
		{"cgroup with trailing slash", cgroup("/a/web.service/"), "/a/web.service", 2},
		{"cgroup above", cgroup("/a/web.service"), "/a", -1},
		{"cgroup with longer name", cgroup("/a/web.service"), "/a/web.service2", -1},
		{"cgroup with shorter name", cgroup("/a/web.service"), "/a/web.servic", -1},
		{"cgroup elsewhere", cgroup("/a/web.service"), "/b/a/web.service", -1},
		{"root cgroup", cgroup("/"), "/a/b", 0},
		{"root cgroup itself", cgroup("/"), "/", 0},

		{"prefix", prefix("/s/web@"), "/s/web@1.service", 2},
		{"prefix below", prefix("/s/web@"), "/s/web@1.service/x", 2},
		{"prefix of a directory", prefix("/s/"), "/s/x", 1},
		{"prefix of a directory is not the directory", prefix("/s/"), "/s", -1},
		{"prefix elsewhere", prefix("/s/web@"), "/t/web@1.service", -1},
		{"empty prefix", prefix(""), "/a", -1},

		{"unit at the top", unit("web.service"), "/web.service", 1},
		{"unit in a slice", unit("web.service"), "/system.slice/web.service", 2},
		{"unit in nested slices", unit("web.service"), "/a.slice/a-b.slice/web.service", 3},
		{"unit delegated", unit("web.service"), "/system.slice/web.service/sub/x.scope", 2},
		{"unit with longer name", unit("web.service"), "/a/web.service2", -1},
		{"unit with longer front", unit("web.service"), "/a/myweb.service", -1},
		{"unit is a slice", unit("app.slice"), "/app.slice/x.service", 1},
		{"unit of a user's manager", unit("web.service"), "/user.slice/user-7.slice/user@7.service/app.slice/web.service", -1},
		{"unit inside a container", unit("web.service"), "/machine.slice/x.scope/system.slice/web.service", -1},
		{"no unit", unit(""), "/", -1},

		{"template", unit("web@*.service"), "/system.slice/system-web.slice/web@1.service", 3},
		{"template with dots", unit("web@*.service"), "/s.slice/web@a.service.service", 2},
		{"template with escapes", unit("web@*.service"), `/s.slice/web@a\x2db.service`, 2},
		{"template below", unit("web@*.service"), "/s.slice/web@1.service/x", 2},
		{"template without instance", unit("web@*.service"), "/s.slice/web@.service", -1},
		{"template with other type", unit("web@*.service"), "/s.slice/web@1.socket", -1},
		{"template over segments", unit("web@*.service"), "/web@1/x.service", -1},
		{"template with overlapping ends", unit("a@*@a"), "/a@a", -1},

		{"escaped instance", unit(`web@a\x2db.service`), `/s.slice/web@a\x2db.service`, 2},
		{"escaped instance is literal", unit("web@a-b.service"), `/s.slice/web@a\x2db.service`, -1},
		{"name of a controller", unit("memory.service"), "/s.slice/_memory.service", 2},
		{"name like a controller", unit("memoryx.service"), "/s.slice/memoryx.service", 2},
		{"leading underscore", unit("_x.service"), "/s.slice/__x.service", 2},

		{"user", mesh.Selector{Kind: mesh.SelectUser, Value: "0"}, "/0", -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			selectors := []mesh.Selector{{Kind: mesh.SelectCgroup, Value: "/none"}, tt.selector}
			if got := Depth(selectors, tt.path); got != tt.depth {
				t.Errorf("Depth(%q, %q) = %d, want %d", tt.selector.Value, tt.path, got, tt.depth)
			}
			if got, want := Match(selectors, tt.path), tt.depth >= 0; got != want {
				t.Errorf("Match(%q, %q) = %v, want %v", tt.selector.Value, tt.path, got, want)
			}
		})
	}
}

func TestDepthOfSeveral(t *testing.T) {
	selectors := []mesh.Selector{
		{Kind: mesh.SelectCgroup, Value: "/a/b/c"},
		{Kind: mesh.SelectCgroup, Value: "/a"},
	}
	if got := Depth(selectors, "/a/b/c/d"); got != 3 {
		t.Errorf("Depth = %d, want 3", got)
	}
	if Match(nil, "/a") {
		t.Error("no selectors match")
	}
}
