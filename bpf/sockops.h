/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the parts of the sockops program ask about a connection. */
#pragma once

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
INLINE void client_key(struct bpf_sock_ops *ctx, struct tcp_sock *tcp, struct flow_key *key)
{
	key->netns = netns_cookie(tcp);
	local_address(ctx, &key->client);
	remote_address(ctx, &key->local);
}

INLINE void watch_state(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}
