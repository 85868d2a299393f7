/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: watches how workloads read from their connections, and says whose may
 * be spliced: see habits.h.
 */
#pragma once

#include "habits.h"
#include "sockops.h"

INLINE void watch(struct bpf_sock_ops *ctx, __u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | flags);
}

INLINE void unwatch(struct bpf_sock_ops *ctx, __u32 flags)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~flags);
}

/* Until it was seen how the socket is read from: see watch_read. */
INLINE void watch_reader(struct bpf_sock_ops *ctx)
{
	watch(ctx, BPF_SOCK_OPS_RTT_CB_FLAG);
}

INLINE int splices_calls(__u32 workload)
{
	struct habit h = habits_of(workload, 0);

	return h.splices;
}

/* What is against splicing a client that is just connected, by how it reads. */
INLINE __u32 unfit_client(struct bpf_sock_ops *ctx, const struct tcp_sock *tcp, __u32 workload, __u32 service)
{
	struct habit h = habits_of(workload, service);

	if (is_blocking(&tcp->inet_conn.icsk_inet.sk)) {
		learn(workload, service, blocks);
		return FALLBACK_BLOCKING;
	}
	if (h.waits)
		return FALLBACK_BLOCKING;
	/* Whether it still does not block when it sends: see sending. */
	watch(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | (h.reads ? 0 : BPF_SOCK_OPS_RTT_CB_FLAG));
	if (!h.reads)
		return h.blocks ? FALLBACK_BLOCKING : FALLBACK_READER;
	return splices_calls(workload) ? FALLBACK_READER : FALLBACK_NONE;
}

/* Whether it was seen how a client reads. One that blocks now did not when it sent
 * its first message, or has sent none. */
INLINE int client_reads(struct bpf_sock_ops *ctx, const struct socket *s, const struct tcp_sock *tcp)
{
	if (is_blocking(&tcp->inet_conn.icsk_inet.sk)) {
		if (!has_read(tcp) && ctx->bytes_acked <= 1) /* the SYN */
			return 0;
		learn(s->workload, s->service, waits);
	} else if (has_read(tcp)) {
		learn(s->workload, s->service, reads);
	} else {
		return 0;
	}
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
	if (s && s->flags & (SOCKET_DIRECT | SOCKET_CAPTURED) ? client_reads(ctx, s, tcp) : server_reads(ctx, tcp))
		unwatch(ctx, BPF_SOCK_OPS_RTT_CB_FLAG);
}

/* Whether nothing has gone either way, as far as TCP knows. */
INLINE int is_fresh(struct bpf_sock_ops *ctx, const struct tcp_sock *tcp)
{
	return !tcp->bytes_received && ctx->bytes_acked <= 1 && ctx->snd_una == tcp->write_seq;
}
