//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * UDP queries of workloads go to the DNS proxy, and its answers come from the
 * server that was asked. Connected sockets are rewritten in connect4|6 and
 * only get their answers' address from here.
 *
 * A socket that asks several servers without connecting gets all answers from
 * the last one it asked; stub resolvers compare with the list of all servers.
 */
#include "meshproxy.h"

INLINE enum verdict judge_query(struct dial *d)
{
	struct address proxy;
	int has_listeners;

	if (d->to.port != DNS_SERVER_PORT || d->ctx->protocol != IPPROTO_UDP)
		return LEAVE;
	if (!is_ours(d) || d->workload->flags & WORKLOAD_BYPASS || !d->node->dns_port)
		return LEAVE;
	/* No setsockopt in this hook before 6.0, so no way to loopback. */
	if (d->ctx->sk->bound_dev_if && d->ctx->sk->bound_dev_if != LOOPBACK_IFINDEX)
		return LEAVE;
	resolve_unspecified(&d->to);
	if (excluded(d->workload, d->id, OUT, d->to.port, &d->to)) {
		count_connection(d->id, 0, OUTCOME_EXCLUDED);
		return LEAVE;
	}
	has_listeners = bpf_map_lookup_elem(&namespaces, &d->netns) != 0;
	if (!proxy_serves(d, has_listeners)) {
		if (!(d->workload->flags & WORKLOAD_DOWN_DIRECT))
			return refuse(d, EVENT_REFUSED, REASON_PROXY_DOWN);
		count_connection(d->id, 0, OUTCOME_DIRECT);
		return LEAVE;
	}
	if (!has_listeners)
		return refuse_without_listeners(d);
	if (!d->socket)
		d->socket = bpf_sk_storage_get(&sockets, d->ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!d->socket)
		return refuse(d, EVENT_REFUSED, REASON_NO_MEMORY);
	d->socket->flags = SOCKET_DNS;
	d->socket->workload = d->id;
	d->socket->address = d->to;
	proxy = d->to;
	set_loopback(&proxy);
	proxy.port = d->node->dns_port;
	d->to = proxy;
	count_connection(d->id, 0, OUTCOME_DNS);
	return REWRITE;
}

SEC("cgroup/sendmsg4")
int query4(struct bpf_sock_addr *ctx)
{
	struct dial d = {.ctx = ctx};
	enum verdict v;

	set_v4(&d.to, ctx->user_ip4);
	d.to.port = ntohs((__u16)ctx->user_port);
	v = judge_query(&d);
	if (v != REWRITE)
		return v == LEAVE;
	ctx->user_ip4 = d.to.ip[3];
	ctx->user_port = htons(d.to.port);
	return 1;
}

SEC("cgroup/sendmsg6")
int query6(struct bpf_sock_addr *ctx)
{
	struct dial d = {.ctx = ctx};
	enum verdict v;

	d.to.ip[0] = ctx->user_ip6[0];
	d.to.ip[1] = ctx->user_ip6[1];
	d.to.ip[2] = ctx->user_ip6[2];
	d.to.ip[3] = ctx->user_ip6[3];
	d.to.port = ntohs((__u16)ctx->user_port);
	v = judge_query(&d);
	if (v != REWRITE)
		return v == LEAVE;
	ctx->user_ip6[0] = d.to.ip[0];
	ctx->user_ip6[1] = d.to.ip[1];
	ctx->user_ip6[2] = d.to.ip[2];
	ctx->user_ip6[3] = d.to.ip[3];
	ctx->user_port = htons(d.to.port);
	return 1;
}

/* The server that was asked, when a datagram came from the DNS proxy. */
INLINE struct socket *asked(struct bpf_sock_addr *ctx, const struct address *from)
{
	struct socket *s;
	struct node *n;

	if (!ctx->sk)
		return 0;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	if (!s || !(s->flags & SOCKET_DNS))
		return 0;
	n = this_node();
	return n && from->port == n->dns_port && is_loopback(from) ? s : 0;
}

SEC("cgroup/recvmsg4")
int answer4(struct bpf_sock_addr *ctx)
{
	struct address from = {};
	struct socket *s;

	set_v4(&from, ctx->user_ip4);
	from.port = ntohs((__u16)ctx->user_port);
	s = asked(ctx, &from);
	if (!s || !is_v4(&s->address))
		return 1;
	ctx->user_ip4 = s->address.ip[3];
	ctx->user_port = htons(s->address.port);
	return 1;
}

SEC("cgroup/recvmsg6")
int answer6(struct bpf_sock_addr *ctx)
{
	struct address from = {};
	struct socket *s;

	from.ip[0] = ctx->user_ip6[0];
	from.ip[1] = ctx->user_ip6[1];
	from.ip[2] = ctx->user_ip6[2];
	from.ip[3] = ctx->user_ip6[3];
	from.port = ntohs((__u16)ctx->user_port);
	s = asked(ctx, &from);
	if (!s)
		return 1;
	ctx->user_ip6[0] = s->address.ip[0];
	ctx->user_ip6[1] = s->address.ip[1];
	ctx->user_ip6[2] = s->address.ip[2];
	ctx->user_ip6[3] = s->address.ip[3];
	ctx->user_port = htons(s->address.port);
	return 1;
}
