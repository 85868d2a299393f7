//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * raw_tp/cgroup_mkdir: a new cgroup belongs to its workload before anybody can
 * see its directory, let alone start a process in it (cgroup_mkdir fires the
 * tracepoint before kernfs_activate).
 *
 * Selected by path, exact or by prefix; or by the name of a systemd unit, which
 * counts only where systemd itself puts units: not below a service or scope. A
 * user's delegated subtree (user@1000.service/…) could otherwise take any
 * workload's identity by naming a directory after it. sockmap/rules.go decides
 * in the same way for cgroups that exist already.
 */
#include "meshproxy.h"

#define PATH_READ 512 /* of which the first RULE_PATH bytes are matched */

/* The length of the capture's root within the hierarchy, without a trailing
 * slash: 0 for the root of the hierarchy. */
const volatile __u32 root_length;

struct enrolling {
	struct rule_key rule; /* with the path */
	__u8 rest[PATH_READ - RULE_PATH];
	struct unit_key unit;
	struct unit_key template;
	__u32 at, dot; /* in unit: of the template's mark, of the last dot */
	__u64 last;    /* bytes before the current one in path */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct enrolling);
} enrolling SEC(".maps");

/* Whether a directory between the root and the last one is a unit that can be
 * delegated to somebody. The bytes seen live in memory: in a register the
 * verifier would follow every combination. */
INLINE int below_unit(struct enrolling *e, __u32 length)
{
	const __u64 service = 0x2e73657276696365; /* ".service" */
	const __u64 scope = 0x2e73636f7065;       /* ".scope" */
	const __u8 *path = e->rule.path;
	volatile __u64 *last = &e->last;

	if (length > PATH_READ)
		return 1;
	*last = 0;
	for (__u32 i = 0; i < PATH_READ; i++) {
		__u8 c;

		if (i >= length)
			break;
		c = i < RULE_PATH ? path[i & (RULE_PATH - 1)] : e->rest[i & (RULE_PATH - 1)];
		if (c == '/' && i > root_length) {
			__u64 name = *last;

			if (name == service || (name & 0xffffffffffff) == scope)
				return 1;
		}
		*last = *last << 8 | c;
	}
	return 0;
}

/* "web@one.service" to "web@*.service". The positions live in memory: as
 * registers the verifier would follow every pair of them. */
INLINE int make_template(struct enrolling *e)
{
	volatile __u32 *at = &e->at, *dot = &e->dot;

	__builtin_memset(&e->template, 0, sizeof(e->template));
	*at = 0;
	*dot = 0;
	for (__u32 i = 0; i < UNIT_NAME - 1; i++) {
		__u8 c = e->unit.name[i];

		if (!*at) {
			e->template.name[i] = c;
			if (c == '@')
				*at = i;
		} else if (c == '.') {
			*dot = i;
		}
	}
	if (!*at || *dot <= *at + 1) /* an instance is never empty */
		return 0;
	e->template.name[(*at + 1) & (UNIT_NAME - 1)] = '*';
	for (__u32 i = 0; i < 16; i++) { /* ".automount" is the longest suffix */
		__u8 c = e->unit.name[(*dot + i) & (UNIT_NAME - 1)];

		e->template.name[(*at + 2 + i) & (UNIT_NAME - 1)] = c;
	}
	return 1;
}

INLINE __u32 match_unit(struct enrolling *e, struct kernfs_node *kn, __u32 length)
{
	const char *name;
	struct rule *r;

	__builtin_memset(&e->unit, 0, sizeof(e->unit));
	if (read_field(name, kn->name) || bpf_probe_read_kernel_str(e->unit.name, UNIT_NAME, name) < 0)
		return 0;
	r = bpf_map_lookup_elem(&units, &e->unit);
	if (!r && make_template(e))
		r = bpf_map_lookup_elem(&units, &e->template);
	return r && !below_unit(e, length) ? r->workload : 0;
}

INLINE void announce(__u32 kind, __u32 workload, __u64 id)
{
	struct event *e = new_event(kind, 0, workload);

	if (!e)
		return;
	e->cgroup = id;
	bpf_ringbuf_submit(e, 0);
}

/* Not the default hierarchy: cgroup v1 has its own ids. */
INLINE int is_v1(struct cgroup *cgroup)
{
	struct cgroup_root *root;
	int hierarchy;

	return read_field(root, cgroup->root) || read_field(hierarchy, root->hierarchy_id) || hierarchy;
}

SEC("raw_tp/cgroup_mkdir")
int enroll(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];
	const char *path = (const char *)ctx->args[1];
	struct kernfs_node *kn;
	struct enrolling *e;
	struct node *n;
	struct rule *r;
	__u32 zero = 0, workload, level;
	long length;
	__u64 id;

	e = bpf_map_lookup_elem(&enrolling, &zero);
	n = this_node();
	if (!e || !n || is_v1(cgroup))
		return 0;
	length = bpf_probe_read_kernel_str(e->rule.path, PATH_READ, path);
	if (length <= 1)
		return 0;
	e->rule.prefixlen = RULE_PATH * 8;
	r = bpf_map_lookup_elem(&rules, &e->rule);
	if (!r) /* outside of the capture's root */
		return 0;
	if (read_field(kn, cgroup->kn) || read_field(id, kn->id) || read_field(level, cgroup->level))
		return 0;
	workload = r->level == level ? r->workload : 0;
	if (!workload)
		workload = match_unit(e, kn, length - 1);
	if (!workload)
		return 0;
	if (bpf_map_update_elem(&cgroups, &id, &workload, BPF_ANY)) {
		count(enroll_failed);
		return 0;
	}
	n->levels[level & (MAX_LEVELS - 1)] = 1;
	announce(EVENT_ENROLLED, workload, id);
	return 0;
}

SEC("raw_tp/cgroup_rmdir")
int dismiss(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];
	struct kernfs_node *kn;
	__u32 workload, *w;
	__u64 id;

	if (is_v1(cgroup) || read_field(kn, cgroup->kn) || read_field(id, kn->id))
		return 0;
	w = bpf_map_lookup_elem(&cgroups, &id);
	if (!w)
		return 0;
	workload = *w;
	bpf_map_delete_elem(&cgroups, &id);
	announce(EVENT_GONE, workload, id);
	return 0;
}
