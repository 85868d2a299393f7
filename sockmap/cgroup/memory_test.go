// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMemoryOfV1(t *testing.T) {
	for _, tt := range []struct {
		content, want string
		ok            bool
	}{
		{"0::/system.slice/x.service\n", "", false},
		{"4:memory:/a/b\n3:cpuset:/\n0::/\n", "/a/b", true},
		{"5:cpu,memory:/c\n", "/c", true},
		{"5:memoryx:/c\nmalformed\n", "", false},
	} {
		if got, ok := memoryV1([]byte(tt.content)); got != tt.want || ok != tt.ok {
			t.Errorf("memoryV1(%q) = %q, %v", tt.content, got, ok)
		}
	}
}

func TestUpwards(t *testing.T) {
	if got := upwards("/cg", "/a/b"); !slices.Equal(got, []string{"/cg/a/b", "/cg/a", "/cg"}) {
		t.Errorf("%v", got)
	}
	if got := upwards("/cg", "/"); !slices.Equal(got, []string{"/cg"}) {
		t.Errorf("%v", got)
	}
}

func TestMemoryRead(t *testing.T) {
	const none = "9223372036854771712"
	for _, tt := range []struct {
		name     string
		v1       bool
		own, top map[string]string
		want     Usage
	}{
		{name: "no controller"},
		{
			name: "no limit", own: map[string]string{"memory.max": "max", "memory.current": "7"},
		},
		{
			name: "own", own: map[string]string{"memory.max": "100", "memory.current": "70", "memory.stat": "anon 40\ninactive_file 20\nactive_file 5\n"},
			want: Usage{50, 100},
		},
		{
			name: "the one above is tighter", own: map[string]string{"memory.max": "100", "memory.current": "10"},
			top: map[string]string{"memory.max": "1000", "memory.current": "900"}, want: Usage{900, 1000},
		},
		{
			name: "version 1", v1: true, own: map[string]string{
				"memory.limit_in_bytes": "100", "memory.usage_in_bytes": "90", "memory.stat": "inactive_file 1\ntotal_inactive_file 30\n",
			},
			top: map[string]string{"memory.limit_in_bytes": none, "memory.usage_in_bytes": "900"}, want: Usage{60, 100},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			own := filepath.Join(top, "own")
			if err := os.Mkdir(own, 0o755); err != nil {
				t.Fatal(err)
			}
			for dir, files := range map[string]map[string]string{top: tt.top, own: tt.own} {
				for name, content := range files {
					if err := os.WriteFile(filepath.Join(dir, name), []byte(content+"\n"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			if got := (&Memory{dirs: upwards(top, "/own"), v1: tt.v1}).Read(); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestOwnMemory: this machine has one of the hierarchies, and reading it works.
func TestOwnMemory(t *testing.T) {
	m, err := OwnMemory()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.dirs) == 0 {
		t.Fatal("no cgroup")
	}
	if u := m.Read(); u.Limit != 0 && u.Used == 0 {
		t.Errorf("%+v", u)
	}
}
