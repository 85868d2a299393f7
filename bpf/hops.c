//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: puts both ends of a connection between an application and the proxy
 * into the map of those that are spliced; hop.c says what becomes of what they
 * send.
 *
 * A blocking application may be harmed here as between two workloads: its read
 * sleeps in tcp_bpf_recvmsg, whoever is at the other end. So its habits count, and
 * it leaves by the same rule.
 *
 * The client's end is the first to be established, the application's when it
 * was captured and the proxy's when it dialled a server of this node; the other
 * one follows it.
 */
#include "hop.h"
#include "readers.h"

INLINE int may_hop(__u32 own)
{
	struct node *n = this_node();

	return n && n->hopping >= (own ? SPLICING_TEST : SPLICING_ON);
}

INLINE __u32 insert_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct hop_end *end)
{
	struct splice_key own = {
		.client = end->peer.client,
		.side = end->peer.side == SIDE_CLIENT ? SIDE_SERVER : SIDE_CLIENT,
	};
	struct hop_end *e = bpf_sk_storage_get(&hop_ends, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!e)
		return FALLBACK_FULL;
	*e = *end;
	if (end->proxy ? bpf_sock_hash_update(ctx, &hopping, &own, BPF_NOEXIST)
		       : bpf_sock_hash_update(ctx, &hopping_apps, &own, BPF_NOEXIST))
		return FALLBACK_FULL;
	return FALLBACK_NONE;
}

/* Why a server's socket may not be spliced, by what is known of it. */
INLINE __u32 unfit_server(__u32 workload, int blocking)
{
	if (is_unspliced(workload))
		return FALLBACK_WORKLOAD;
	if (splices_calls(workload))
		return FALLBACK_READER;
	return blocking ? FALLBACK_BLOCKING : FALLBACK_NONE;
}

/* The client's end is established. */
INLINE void begin_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, struct hop_end *end, __u32 why)
{
	struct hop h = {.workload = end->workload, .service = end->service, .own = end->own};

	end->peer.client = bpf_get_socket_cookie(ctx);
	end->peer.side = SIDE_SERVER;
	h.sockets[SIDE_CLIENT] = (__u64)tcp;
	if (!why && bpf_map_update_elem(&hops, &end->peer.client, &h, BPF_NOEXIST))
		why = FALLBACK_FULL;
	if (!why) {
		why = insert_hop(ctx, sk, end);
		if (why)
			bpf_map_delete_elem(&hops, &end->peer.client);
	}
	if (why)
		count_hop_fallback(end->proxy, why);
	else
		count_hop(end->proxy, spliced, 1);
}

/* A workload's connection has reached the proxy's backlog. */
INLINE void captured_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, const struct socket *s)
{
	struct hop_end end = {.workload = s->workload, .service = s->service};
	__u32 why;

	if (!may_hop(0))
		return;
	why = unfit_client(ctx, tcp, s->workload, s->service);
	begin_hop(ctx, sk, tcp, &end, is_unspliced(s->workload) ? FALLBACK_WORKLOAD : why);
}

/* The proxy has reached a workload's server. */
INLINE void dialled_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, struct port *p)
{
	struct hop_end end = {.workload = p->workload, .proxy = 1};
	int blocking = (p->flags & (PORT_NONBLOCKING | PORT_BLOCKING)) != PORT_NONBLOCKING;

	begin_hop(ctx, sk, tcp, &end, unfit_server(p->workload, blocking));
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

/* The other end of either. */
INLINE void accepted_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, __u64 client, int proxy)
{
	struct hop *h = bpf_map_lookup_elem(&hops, &client);
	struct hop_end end = {.peer = {.client = client, .side = SIDE_CLIENT}, .proxy = proxy};
	__u32 why;

	if (!h)
		return;
	end.workload = h->workload;
	end.service = h->service;
	end.own = h->own;
	why = insert_hop(ctx, sk, &end);
	if (why)
		count_hop_fallback(proxy, why);
	else
		h->sockets[SIDE_SERVER] = (__u64)tcp;
}

/* leave_splice for a captured connection; the proxy finds that it is no hop. */
INLINE int leave_hop(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct hop_end *e = bpf_sk_storage_get(&hop_ends, sk, 0, 0);
	struct splice_key key = {.client = bpf_get_socket_cookie(ctx)};
	struct hop *h = bpf_map_lookup_elem(&hops, &key.client);

	if (!h || !e)
		return 1;
	if (e->messages || h->answered)
		return 0;
	bpf_map_delete_elem(&hops, &key.client);
	key.side = SIDE_CLIENT;
	bpf_map_delete_elem(&hopping_apps, &key);
	key.side = SIDE_SERVER;
	bpf_map_delete_elem(&hopping, &key);
	count_hop(HOP_APPLICATION, left, 1);
	return 1;
}

INLINE void end_hop(struct bpf_sock *sk)
{
	struct hop_end *e = bpf_sk_storage_get(&hop_ends, sk, 0, 0);
	struct hop *h;

	if (!e)
		return;
	if (e->peer.side == SIDE_SERVER) {
		bpf_map_delete_elem(&hops, &e->peer.client);
		return;
	}
	h = bpf_map_lookup_elem(&hops, &e->peer.client);
	if (h)
		h->sockets[SIDE_SERVER] = 0; /* its memory is another socket's soon */
}
