//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/bind4|6: in namespaces that are part of the mesh nobody but the proxy
 * takes the proxy's ports, or any user could receive plaintext while it is
 * down. Also notes whose a socket is while the calling process is known;
 * listen(2) in listeners.c needs it.
 */
#include "meshproxy.h"

INLINE int is_proxy_port(const struct node *n, const struct bpf_sock_addr *ctx)
{
	__u16 port = ntohs((__u16)ctx->user_port);

	if (!port)
		return 0;
	if (port == n->outbound_port || port == n->plain_port || port == n->hbone_port ||
	    port == n->mtls_port || port == n->dns_port)
		return 1;
	return ctx->type == SOCK_STREAM && bpf_map_lookup_elem(&own_ports, &port);
}

INLINE int may_bind(struct bpf_sock_addr *ctx)
{
	struct node *n = this_node();
	struct socket *s;
	__u64 netns;
	__u32 id;

	if (!n || !ctx->sk)
		return 1;
	if (is_proxy_port(n, ctx)) {
		netns = bpf_get_netns_cookie(ctx);
		if (!bpf_map_lookup_elem(&namespaces, &netns))
			return 1;
		s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
		if (s && s->flags & SOCKET_OWN)
			return 1;
		count_rejection(current_workload(n), REASON_PORT_TAKEN);
		return 0;
	}
	if (ctx->type != SOCK_STREAM)
		return 1;
	id = current_workload(n);
	if (!id)
		return 1;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (s)
		s->workload = id;
	return 1;
}

SEC("cgroup/bind4")
int guard4(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx);
}

SEC("cgroup/bind6")
int guard6(struct bpf_sock_addr *ctx)
{
	return may_bind(ctx);
}
