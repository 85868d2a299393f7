/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: watches how workloads read from connections that are TCP, and says
 * whose may be spliced: see habits.h.
 */
#pragma once

#include "habits.h"
#include "sockops.h"

/* Until it was seen how the socket is read from: see watch_read. */
INLINE void watch_reader(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
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
