//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: which ports workloads listen on, for those who connect to them and
 * for inbound.c, which protects them.
 */
#include "sockops.h"

/* The workload that a listener belongs to by the cgroup that its socket was
 * made in: for one that never was bound, and so never met guard.c. */
INLINE __u32 listener_workload(struct tcp_sock *tcp)
{
	struct cgroup_subsys_state *parent;
	struct kernfs_node *kn;
	struct cgroup *cgroup;
	__u64 id;

	if (!have_probe_read || !field_exists(((struct sock_cgroup_data *)0)->cgroup))
		return 0;
	cgroup = tcp->inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup;
	for (int i = 0; i < MAX_LEVELS && cgroup; i++) {
		__u32 *w;

		if (read_field(kn, cgroup->kn) || read_field(id, kn->id))
			return 0;
		w = bpf_map_lookup_elem(&cgroups, &id);
		if (w)
			return *w;
		if (read_field(parent, cgroup->self.parent) || !parent)
			return 0;
		if (read_field(cgroup, parent->cgroup))
			return 0;
	}
	return 0;
}

/* Whether the configuration says whose the port is, whoever listens. */
INLINE int is_declared(struct port_key key)
{
	struct port *p;

	key.address.ip[0] = 0;
	key.address.ip[1] = 0;
	key.address.ip[2] = 0;
	key.address.ip[3] = 0;
	p = bpf_map_lookup_elem(&ports, &key);
	return p && p->flags & PORT_DECLARED;
}

INLINE void listening(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct port value = {.flags = PORT_LEARNED};
	struct port_key key = {};
	struct port_filter *filter;
	__u32 slot;
	__u8 *set;

	if (!tcp || (s && s->flags & SOCKET_OWN))
		return;
	value.workload = s ? s->workload : 0;
	if (!value.workload)
		value.workload = listener_workload(tcp);
	key.netns = netns_cookie(tcp);
	/* What listens elsewhere is found when the namespace is attached. */
	if (!bpf_map_lookup_elem(&namespaces, &key.netns))
		return;
	local_address(ctx, &key.address);
	slot = key.address.port >> 6;
	filter = bpf_map_lookup_elem(&port_filter, &slot);
	if (!filter)
		return;
	set = &filter->set[key.address.port & 63];
	/* Somebody else's listener matters only where a workload's was. */
	if (!value.workload && (!*set || is_declared(key)))
		return;
	if (is_declared(key))
		value.flags |= PORT_DECLARED;
	if (bpf_map_update_elem(&ports, &key, &value, BPF_ANY))
		count(ports_full);
	if (!value.workload)
		return;
	*set = 1;
	watch_state(ctx);
}

/* A listener is gone: nobody is sent to it by the direct way. The port stays
 * protected, and user space looks whether somebody else listens there. */
INLINE void unlistening(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct port_key key = {};
	struct port *p;

	if (!tcp)
		return;
	key.netns = netns_cookie(tcp);
	local_address(ctx, &key.address);
	p = bpf_map_lookup_elem(&ports, &key);
	if (p)
		p->flags &= ~(PORT_LEARNED | PORT_NONBLOCKING | PORT_BLOCKING);
}
