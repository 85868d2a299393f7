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
#include "habits.h"
#include "congestion.c"
#include "hops.c"

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

/* Until it was seen how the socket is read from: see watch_read. */
INLINE void watch_reader(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
}

INLINE __u32 direct_flags(const struct socket *s)
{
	__u32 flags = FLOW_DIRECT;

	if (s->flags & SOCKET_OWN)
		flags |= FLOW_TEST;
	return flags;
}

/* Both ends have to come to the same key, whichever namespaces they are in. */
INLINE void dialling(struct bpf_sock_ops *ctx, struct socket *s, struct flow_key *key)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct direct *d = bpf_map_lookup_elem(&directs, &cookie);

	if (d) {
		d->local = key->client;
		d->remote = key->local;
		d->flags |= DIRECT_ADDRESSED;
	}
	key->netns = s->netns;
}

INLINE void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct flow_key key = {};
	struct flow f = {};

	if (!s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN | SOCKET_DIRECT)))
		return;
	if (!tcp || !client_key(ctx, sk, &key))
		return;
	if (!(s->flags & SOCKET_OWN) || goes_by_loopback(tcp))
		without_congestion(ctx, tcp);
	if (s->flags & SOCKET_DIRECT) {
		dialling(ctx, s, &key);
		f.flags = direct_flags(s);
		f.endpoint = s->endpoint;
	} else if (s->flags & SOCKET_CAPTURED)
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

INLINE void report(__u32 kind, __u64 cookie, const struct direct *conn)
{
	struct node *n = this_node();
	struct closed_event *e;

	if (!n || !n->reports)
		return;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		count(events_lost);
		return;
	}
	e->kind = kind;
	e->pad = 0;
	e->cookie = cookie;
	e->now = bpf_ktime_get_ns();
	e->conn = *conn;
	bpf_ringbuf_submit(e, 0);
}

/* Takes a connection off the record when all ends that the programs follow are
 * closed; only one of them finds it there. */
INLINE void end_closed(__u64 cookie, struct direct *d, __u32 ends)
{
	struct direct conn;

	__sync_fetch_and_add(&d->closed, ends);
	if (d->closed < 2)
		return;
	/* Another connection may have the place as soon as it is free. */
	conn = *d;
	if (!bpf_map_delete_elem(&directs, &cookie) && conn.flags & DIRECT_ESTABLISHED)
		report(EVENT_CLOSED, cookie, &conn);
}

/* The server's end of a spliced connection is known by its state alone. */
INLINE void settle_end(struct bpf_sock *sk, __u32 before)
{
	struct splice *sp = bpf_sk_storage_get(&splices, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct direct *d;
	__u32 sent;

	if (!sp || !tcp)
		return;
	sent = tcp->write_seq;
	/* The FIN has a number too; from these states it goes without one. */
	if (before != TCP_ESTABLISHED && before != TCP_CLOSE_WAIT)
		sent--;
	count_sent(sp, sent);
	settle(sp);
	if (sp->peer.side != SIDE_CLIENT)
		return;
	d = bpf_map_lookup_elem(&directs, &sp->peer.client);
	if (d && d->sockets[SIDE_SERVER])
		end_closed(sp->peer.client, d, 1);
}

/* What TCP counts of a client's bytes has its SYN in it, and the FINs. */
INLINE __u64 bytes_sent(struct bpf_sock_ops *ctx, __u32 before)
{
	__u64 n = ctx->bytes_acked;
	__u32 numbers = before == TCP_FIN_WAIT2 || before == TCP_TIME_WAIT || before == TCP_LAST_ACK || before == TCP_CLOSING ? 2 : 1;

	return n > numbers ? n - numbers : 0;
}

INLINE __u64 bytes_received(struct bpf_sock_ops *ctx, __u32 before)
{
	__u64 n = ctx->bytes_received;

	return n && (before >= TCP_CLOSE_WAIT || before == TCP_FIN_WAIT2 || before == TCP_TIME_WAIT) ? n - 1 : n;
}

INLINE void direct_closed(struct bpf_sock_ops *ctx, const struct socket *s, __u32 before)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct direct *d = bpf_map_lookup_elem(&directs, &cookie);

	if (!d)
		return;
	if (d->flags & DIRECT_ESTABLISHED) {
		count_traffic(s->workload, s->service, closed, 1);
		/* The programs saw nothing of what was never spliced. */
		if (!(d->flags & DIRECT_SPLICED)) {
			d->sent = bytes_sent(ctx, before);
			d->received = bytes_received(ctx, before);
			count_traffic(s->workload, s->service, sent, d->sent);
			count_traffic(s->workload, s->service, received, d->received);
		}
	}
	end_closed(cookie, d, d->sockets[SIDE_SERVER] ? 1 : 2);
}

/* Makes the socket an end of a spliced connection. The hooks of connections
 * that are just established are the only ones that may. */
INLINE int insert(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct tcp_sock *tcp, const struct splice *end)
{
	struct splice_key own = {
		.client = end->peer.client,
		.side = end->peer.side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT,
	};
	struct splice *sp = bpf_sk_storage_get(&splices, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!sp)
		return FALLBACK_FULL;
	*sp = *end;
	sp->counted = tcp->write_seq;
	/* A key that is there belongs to a living socket, never to be removed. */
	if (bpf_sock_hash_update(ctx, &spliced, &own, BPF_NOEXIST))
		return FALLBACK_FULL;
	return FALLBACK_NONE;
}

INLINE int may_splice(const struct splice *end)
{
	struct node *n = this_node();

	return n && n->splicing >= (end->own ? SPLICING_TEST : SPLICING_ON);
}

/* What is against splicing a client, by how it and the server's workload read. */
INLINE __u32 unfit_readers(struct bpf_sock_ops *ctx, const struct splice *end)
{
	__u32 client = habits_of(end->workload, end->service);

	if (end->own)
		return FALLBACK_NONE;
	if (!(client & (HABIT_READS | HABIT_BLOCKS)))
		watch_reader(ctx);
	if (client & HABIT_BLOCKS)
		return FALLBACK_BLOCKING;
	if (!(client & HABIT_READS) || (habits_of(end->workload, 0) | habits_of(end->endpoint, 0)) & HABIT_SPLICES)
		return FALLBACK_READER;
	return FALLBACK_NONE;
}

INLINE void connected_to_proxy(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, const struct socket *s)
{
	struct address remote = {};
	struct port *p;

	if (s->flags & SOCKET_CAPTURED) {
		captured_hop(ctx, sk, tcp, s);
	} else if (s->flags & SOCKET_HOP && may_hop(0)) {
		remote_address(ctx, &remote);
		p = find_port(netns_cookie(tcp), &remote);
		if (p && p->workload)
			dialled_hop(ctx, sk, tcp, p);
	}
}

/* A workload's connection to another workload of this node. This end is the
 * first to be established, and the other one follows it into the map or out. */
INLINE void connected(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct splice end = {};
	struct direct *d;
	__u32 why;

	if (!tcp || !s)
		return;
	if (!(s->flags & SOCKET_DIRECT)) {
		connected_to_proxy(ctx, sk, tcp, s);
		return;
	}
	end.peer.client = bpf_get_socket_cookie(ctx);
	end.peer.side = SIDE_SERVER;
	end.workload = s->workload;
	end.service = s->service;
	end.endpoint = s->endpoint;
	end.own = s->flags & SOCKET_OWN;
	d = bpf_map_lookup_elem(&directs, &end.peer.client);
	if (!d)
		return;
	d->flags |= DIRECT_ESTABLISHED;
	count_traffic(s->workload, s->service, opened, 1);
	why = unfit_readers(ctx, &end);
	if (!may_splice(&end))
		why = FALLBACK_PAUSED;
	else if (s->unspliced)
		why = s->unspliced;
	else if (is_blocking(&tcp->inet_conn.icsk_inet.sk))
		why = FALLBACK_BLOCKING;
	else if (!why)
		why = insert(ctx, sk, tcp, &end);
	if (why) {
		count_fallback(s->workload, s->service, why);
	} else {
		d->sockets[SIDE_CLIENT] = (__u64)tcp;
		d->flags |= DIRECT_SPLICED;
		count_traffic(s->workload, s->service, spliced, 1);
	}
	report(EVENT_OPENED, end.peer.client, d);
}

/* Its other end. */
INLINE void accepting(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, const struct flow *f)
{
	struct splice end = {
		.peer = {.client = f->cookie, .side = SIDE_CLIENT},
		.workload = f->workload,
		.service = f->service,
		.endpoint = f->endpoint,
		.own = f->flags & FLOW_TEST,
	};
	struct direct *d = bpf_map_lookup_elem(&directs, &end.peer.client);
	__u32 why;

	watch_reader(ctx);
	if (!d || !(d->flags & DIRECT_SPLICED))
		return;
	why = insert(ctx, sk, tcp, &end);
	if (why)
		count_fallback(f->workload, f->service, why);
	else
		d->sockets[SIDE_SERVER] = (__u64)tcp;
}

/* Whether it was seen how a direct connection's client reads. */
INLINE int client_reads(const struct socket *s, const struct tcp_sock *tcp)
{
	if (is_blocking(&tcp->inet_conn.icsk_inet.sk))
		learn(s->workload, s->service, HABIT_BLOCKS);
	else if (has_read(tcp))
		learn(s->workload, s->service, HABIT_READS);
	else
		return 0;
	return 1;
}

/* The same of a server: a listener is known by the sockets that it accepted
 * before; the first one is never spliced. */
INLINE int server_reads(struct bpf_sock_ops *ctx, struct tcp_sock *tcp)
{
	int blocking = is_blocking(&tcp->inet_conn.icsk_inet.sk);
	struct address local = {};
	struct port *p;

	local_address(ctx, &local);
	p = find_port(netns_cookie(tcp), &local);
	if (!p)
		return 1;
	if (blocking)
		p->flags |= PORT_BLOCKING;
	else if (has_read(tcp))
		p->flags |= PORT_NONBLOCKING;
	return p->flags & (PORT_BLOCKING | PORT_NONBLOCKING);
}

/* Something that was sent has arrived, or one end closes: by now the socket is
 * what its owner wants it to be. */
INLINE void watch_read(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);

	if (!tcp || !tcp->inet_conn.icsk_inet.sk.sk_socket)
		return; /* not accepted */
	if (s && s->flags & SOCKET_DIRECT ? client_reads(s, tcp) : server_reads(ctx, tcp))
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
}

INLINE void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 before)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct flow_key key = {};
	struct flow *f;

	settle_end(sk, before);
	end_hop(sk);
	if (!s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN | SOCKET_DIRECT)))
		return;
	if (!client_key(ctx, sk, &key))
		return;
	if (s->flags & SOCKET_DIRECT) {
		key.netns = s->netns;
		direct_closed(ctx, s, before);
	}
	if (before == TCP_SYN_SENT || s->flags & (SOCKET_OWN | SOCKET_DIRECT)) {
		bpf_map_delete_elem(&flows, &key);
		return;
	}
	f = bpf_map_lookup_elem(&flows, &key);
	if (f)
		f->closed_at = bpf_ktime_get_ns();
}

/* The proxy is about to get a workload's connection; it takes the flow. */
INLINE void captured(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct node *n = this_node();
	struct flow_key key = {};
	struct tcp_sock *tcp;
	struct flow *f;

	if (!n || n->outbound_port != ctx->local_port)
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	without_congestion(ctx, tcp);
	if (!n->hopping)
		return;
	key.netns = netns_cookie(tcp);
	remote_address(ctx, &key.client);
	local_address(ctx, &key.local);
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && f->flags & FLOW_CAPTURED)
		accepted_hop(ctx, sk, tcp, f->cookie, 1);
}

/* A workload's server is about to get a connection that the proxy made, or a
 * workload of this node. */
INLINE void established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct flow_key key = {};
	struct tcp_sock *tcp;
	struct socket *s;
	struct flow *f;

	if (!filter_port(ctx->local_port)) {
		captured(ctx, sk);
		return;
	}
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	key.netns = netns_cookie(tcp);
	remote_address(ctx, &key.client);
	local_address(ctx, &key.local);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || !(f->flags & (FLOW_OWN | FLOW_DIRECT)))
		return;
	without_congestion(ctx, tcp);
	if (f->flags & FLOW_DIRECT) {
		accepting(ctx, sk, tcp, f);
	} else if (may_hop(0)) {
		watch_reader(ctx); /* also when this one is not spliced */
		accepted_hop(ctx, sk, tcp, f->cookie, 0);
	}
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
		if (ctx->args[0] != TCP_ESTABLISHED && ctx->args[1] != TCP_CLOSE)
			break;
		sk = ctx->sk;
		if (!sk)
			break;
		if (ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTT_CB_FLAG)
			watch_read(ctx, sk);
		if (ctx->args[1] != TCP_CLOSE)
			break;
		if (ctx->args[0] == TCP_LISTEN)
			unlistening(ctx, sk);
		else
			closed(ctx, sk, ctx->args[0]);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		if (sk)
			connected(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		if (sk)
			established(ctx, sk);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		sk = ctx->sk;
		if (sk)
			watch_read(ctx, sk);
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
