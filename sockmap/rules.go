// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/meshproxy/meshproxy/bpf"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
)

// rules say which workload a cgroup belongs to, by what it is called. They are
// given to the kernel, for cgroups to come, and used here, for those that
// exist; both must come to the same answer (bpf/enroll.c).
//
// A rule names cgroups of one depth only; what lies below them inherits,
// because a process belongs to the workload of its nearest enrolled ancestor.
type rules struct {
	root     string // prefix of every path that counts, without trailing slash
	exact    map[string]uint32
	prefixes []prefixRule // longest first
	units    map[string]uint32
	users    map[uint32]uint32
}

type prefixRule struct {
	prefix   string
	workload uint32
}

func newRules(root string) *rules {
	return &rules{
		root:  root,
		exact: make(map[string]uint32),
		units: make(map[string]uint32),
		users: make(map[uint32]uint32),
	}
}

// add takes valid selectors only.
func (r *rules) add(s mesh.Selector, workload uint32) {
	switch s.Kind {
	case mesh.SelectCgroup:
		value := strings.TrimRight(s.Value, "/")
		if value == "" {
			value = "/"
		}
		r.exact[value] = workload
	case mesh.SelectCgroupPrefix:
		r.prefixes = append(r.prefixes, prefixRule{s.Value, workload})
	case mesh.SelectUnit:
		r.units[cgroup.UnitSegment(s.Value)] = workload
	case mesh.SelectUser:
		uid, _ := strconv.ParseUint(s.Value, 10, 32)
		r.users[uint32(uid)] = workload
	}
}

// seal is called after the last add.
func (r *rules) seal() {
	slices.SortStableFunc(r.prefixes, func(a, b prefixRule) int {
		return cmp.Compare(len(b.prefix), len(a.prefix))
	})
}

// level is how deep a cgroup lies, as the kernel counts.
func level(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// match returns the workload that the cgroup at p, not one of its ancestors,
// belongs to; 0 if there is none.
func (r *rules) match(p string) uint32 {
	if w, ok := r.exact[p]; ok {
		return w
	}
	depth := level(p)
	for _, rule := range r.prefixes {
		if strings.HasPrefix(p, rule.prefix) {
			if level(rule.prefix) == depth {
				return rule.workload
			}
			break // as the kernel: the longest one decides
		}
	}
	name := path.Base(p)
	w, ok := r.units[name]
	if !ok {
		w, ok = r.units[template(name)]
	}
	if !ok || belowUnit(strings.TrimPrefix(p, r.root)) {
		return 0
	}
	return w
}

// template turns "web@one.service" into "web@*.service"; what is no instance
// yields "".
func template(name string) string {
	at := strings.IndexByte(name, '@')
	dot := strings.LastIndexByte(name, '.')
	if at < 1 || dot <= at+1 {
		return ""
	}
	return name[:at+1] + "*" + name[dot:]
}

// belowUnit says whether the cgroup lies in a service or a scope, which may be
// delegated to somebody.
func belowUnit(p string) bool {
	dir := path.Dir(p)
	for name := range strings.SplitSeq(dir, "/") {
		if strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".scope") {
			return true
		}
	}
	return false
}

// pathTable returns the kernel's form of the path rules. The root has a rule
// of its own that leads to no workload: without any rule a path is outside.
func (r *rules) pathTable() map[bpf.CaptureRuleKey]bpf.CaptureRule {
	t := map[bpf.CaptureRuleKey]bpf.CaptureRule{ruleKey(r.root + "/"): {}}
	for i := len(r.prefixes) - 1; i >= 0; i-- { // the first of equals wins
		p := r.prefixes[i]
		t[ruleKey(p.prefix)] = bpf.CaptureRule{Workload: p.workload, Level: uint32(level(p.prefix))}
	}
	for p, w := range r.exact {
		t[ruleKey(p+"\x00")] = bpf.CaptureRule{Workload: w, Level: uint32(level(p))}
	}
	return t
}

func ruleKey(prefix string) (key bpf.CaptureRuleKey) {
	key.Prefixlen = uint32(copy(key.Path[:], prefix)) * 8
	return key
}

func (r *rules) unitTable() map[bpf.CaptureUnitKey]bpf.CaptureRule {
	t := make(map[bpf.CaptureUnitKey]bpf.CaptureRule, len(r.units))
	for name, w := range r.units {
		var key bpf.CaptureUnitKey
		copy(key.Name[:], name)
		t[key] = bpf.CaptureRule{Workload: w}
	}
	return t
}
