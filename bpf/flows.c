//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: carries what one end of a connection knows to the other end.
 *
 * A flow is on record from before the SYN leaves until the accepting side has
 * taken it: the proxy through sockmap.Flow, a workload's socket here. It must
 * outlive a client that closes at once, before it was accepted; such flows get
 * a date, and user space removes them when nobody came.
 *
 * Also learns which ports workloads listen on.
 */
#include "meshproxy.h"

/* bpf_get_netns_cookie is there for sockops only since 5.15. */
INLINE __u64 netns_cookie(struct tcp_sock *tcp)
{
	struct net *net = tcp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net;

	if (!net)
		return 0;
	if (field_exists(((struct net *)0)->net_cookie))
		return net->net_cookie;
	return ((struct net___before_5_14 *)net)->net_cookie.counter;
}

INLINE void local_address(struct bpf_sock_ops *ctx, struct address *a)
{
	if (ctx->family == AF_INET) {
		set_v4(a, ctx_read(ctx->local_ip4));
	} else {
		a->ip[0] = ctx_read(ctx->local_ip6[0]);
		a->ip[1] = ctx_read(ctx->local_ip6[1]);
		a->ip[2] = ctx_read(ctx->local_ip6[2]);
		a->ip[3] = ctx_read(ctx->local_ip6[3]);
	}
	a->port = ctx->local_port;
}

INLINE void remote_address(struct bpf_sock_ops *ctx, struct address *a)
{
	if (ctx->family == AF_INET) {
		set_v4(a, ctx_read(ctx->remote_ip4));
	} else {
		a->ip[0] = ctx_read(ctx->remote_ip6[0]);
		a->ip[1] = ctx_read(ctx->remote_ip6[1]);
		a->ip[2] = ctx_read(ctx->remote_ip6[2]);
		a->ip[3] = ctx_read(ctx->remote_ip6[3]);
	}
	a->port = ntohl(ctx->remote_port);
}

/* The key of the flow as seen from the client's socket. */
INLINE int client_key(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct flow_key *key)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp)
		return 0;
	key->netns = netns_cookie(tcp);
	local_address(ctx, &key->client);
	remote_address(ctx, &key->local);
	return 1;
}

INLINE void watch_state(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

INLINE void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct flow_key key = {};
	struct flow f = {};

	if (!s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN)))
		return;
	if (!client_key(ctx, sk, &key))
		return;
	if (s->flags & SOCKET_CAPTURED)
		f.flags = FLOW_CAPTURED | FLOW_NAMED;
	else if (s->flags & SOCKET_SOURCE)
		f.flags = FLOW_OWN | FLOW_NAMED;
	else if (filter_port(key.local.port))
		f.flags = FLOW_OWN;
	else
		return;
	f.cookie = bpf_get_socket_cookie(ctx);
	f.workload = s->workload;
	f.service = s->service;
	f.device = s->device;
	f.address = s->address;
	if (bpf_map_update_elem(&flows, &key, &f, BPF_ANY)) {
		struct node *n = this_node();

		/* This one is lost: the accepting side will find nothing and
		 * close it. connect(2) refuses the next ones for a while. */
		count(flows_full);
		if (n)
			n->flows_full = bpf_ktime_get_ns();
		return;
	}
	watch_state(ctx);
}

INLINE void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 before)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct flow_key key = {};
	struct flow *f;

	if (!s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN)))
		return;
	if (!client_key(ctx, sk, &key))
		return;
	if (before == TCP_SYN_SENT || s->flags & SOCKET_OWN) {
		bpf_map_delete_elem(&flows, &key);
		return;
	}
	f = bpf_map_lookup_elem(&flows, &key);
	if (f)
		f->closed_at = bpf_ktime_get_ns();
}

/* A workload's server is about to get a connection that the proxy made. */
INLINE void established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct flow_key key = {};
	struct tcp_sock *tcp;
	struct socket *s;
	struct flow *f;

	if (!filter_port(ctx->local_port))
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	key.netns = netns_cookie(tcp);
	remote_address(ctx, &key.client);
	local_address(ctx, &key.local);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || !(f->flags & FLOW_OWN))
		return;
	if (f->flags & FLOW_NAMED) {
		s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (s) {
			s->flags = SOCKET_NAMED;
			s->address = f->address;
		}
	}
	bpf_map_delete_elem(&flows, &key);
}

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
	if (value.workload)
		*set = 1;
}

SEC("sockops")
int flow(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		sk = ctx->sk;
		if (sk)
			connecting(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] != TCP_CLOSE)
			break;
		sk = ctx->sk;
		if (sk)
			closed(ctx, sk, ctx->args[0]);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		if (sk)
			established(ctx, sk);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sk = ctx->sk;
		if (sk)
			listening(ctx, sk);
		break;
	}
	/* 1 leaves the reply of other programs on this hook as it is. */
	return 1;
}
