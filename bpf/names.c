//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getpeername4|6: the client sees the destination that it dialled, the
 * server the true client. accept(2) passes here too, both go through
 * inet_getname.
 */
#include "meshproxy.h"

INLINE struct socket *named(struct bpf_sock_addr *ctx)
{
	struct socket *s;

	if (!ctx->sk)
		return 0;
	s = bpf_sk_storage_get(&sockets, ctx->sk, 0, 0);
	return s && s->flags & SOCKET_NAMED ? s : 0;
}

SEC("cgroup/getpeername4")
int name4(struct bpf_sock_addr *ctx)
{
	struct socket *s = named(ctx);

	if (!s || !is_v4(&s->address))
		return 1;
	ctx->user_ip4 = s->address.ip[3];
	ctx->user_port = htons(s->address.port);
	return 1;
}

SEC("cgroup/getpeername6")
int name6(struct bpf_sock_addr *ctx)
{
	struct socket *s = named(ctx);

	if (!s)
		return 1;
	ctx->user_ip6[0] = s->address.ip[0];
	ctx->user_ip6[1] = s->address.ip[1];
	ctx->user_ip6[2] = s->address.ip[2];
	ctx->user_ip6[3] = s->address.ip[3];
	ctx->user_port = htons(s->address.port);
	return 1;
}
