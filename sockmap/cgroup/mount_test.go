// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseMounts(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		want  []Mount
	}{
		{
			"pure",
			[]string{"35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"},
			[]Mount{{Dir: "/sys/fs/cgroup", Root: "/"}},
		},
		{
			"hybrid",
			[]string{
				"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755",
				"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
				"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
			},
			[]Mount{{Dir: "/sys/fs/cgroup/unified", Root: "/", Hybrid: true}},
		},
		{
			"no optional fields, several, blanks",
			[]string{
				`1 2 0:3 /a\040b /mnt/c\134d rw - cgroup2 none rw`,
				"1 2 0:3 / /run/cgroup2 rw shared:1 master:2 - cgroup2 none rw",
			},
			[]Mount{{Dir: `/mnt/c\d`, Root: "/a b"}, {Dir: "/run/cgroup2", Root: "/"}},
		},
		{
			"version 1 only, and nonsense",
			[]string{"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", "", "x - cgroup2", "x"},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMounts(strings.NewReader(strings.Join(tt.lines, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRoot(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	if err := check(root); err != nil {
		t.Fatalf("%s: %v", root, err)
	}
	path, err := Within(root)
	if err != nil || path != "/" {
		t.Errorf("Within(%s) = %q, %v", root, path, err)
	}
	if id, err := ID(root); err != nil || id == 0 {
		t.Errorf("ID(%s) = %d, %v", root, id, err)
	}
}

func TestForeignDirectory(t *testing.T) {
	if _, err := Within("/proc"); !errors.Is(err, ErrNotCgroup2) {
		t.Errorf("Within(/proc): %v", err)
	}
	if _, err := ID("/proc"); !errors.Is(err, ErrNotCgroup2) {
		t.Errorf("ID(/proc): %v", err)
	}
	if _, err := Within("relative"); err == nil {
		t.Error("Within accepts a relative path")
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", `a\040b`: "a b", `\134`: `\`, `a\`: `a\`, `a\04`: `a\04`, `a\999b`: `a\999b`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}
