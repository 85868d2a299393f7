//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: connections from a workload to another one of this node, on record
 * from connect(2) until both ends are closed; puts both ends into the map of
 * those that are spliced, where splice.c says what becomes of what they send.
 */
#include "readers.h"

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

INLINE void report(__u32 kind, __u64 cookie, const struct direct *conn)
{
	struct node *n = this_node();
	struct direct_event *e;

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
	d = bpf_map_lookup_elem(&directs, &sp->peer.client);
	if (!d || !(d->flags & DIRECT_LEFT)) {
		count_sent(sp, sent);
		settle(sp);
	}
	if (d && d->sockets[SIDE_SERVER] && sp->peer.side == SIDE_CLIENT)
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
		/* Of what is not spliced TCP has counted the bytes. */
		if (!(d->flags & DIRECT_SPLICED)) {
			d->sent = bytes_sent(ctx, before);
			d->received = bytes_received(ctx, before);
			count_traffic(s->workload, s->service, sent, d->sent);
			count_traffic(s->workload, s->service, received, d->received);
		}
	}
	end_closed(cookie, d, d->sockets[SIDE_SERVER] ? 1 : 2);
}

/* A client's end of which only the record is this layout's. */
INLINE void former_closed(struct bpf_sock_ops *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct direct *d = bpf_map_lookup_elem(&directs, &cookie);

	if (d)
		end_closed(cookie, d, 2);
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

/* What is against splicing a client, by how it and the server's workload read. */
INLINE __u32 unfit_readers(struct bpf_sock_ops *ctx, const struct tcp_sock *tcp, const struct splice *end)
{
	__u32 why;

	if (end->own)
		return is_blocking(&tcp->inet_conn.icsk_inet.sk) ? FALLBACK_BLOCKING : FALLBACK_NONE;
	why = unfit_client(ctx, tcp, end->workload, end->service);
	return !why && splices_calls(end->endpoint) ? FALLBACK_READER : why;
}

/* Takes both ends out of the map as if they had never been in it, if nothing has
 * gone by it, and nothing by TCP. The server's program says that it has sent
 * something before it looks whether the client blocks. */
INLINE int leave_splice(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct splice *sp = bpf_sk_storage_get(&splices, sk, 0, 0);
	struct splice_key key = {.client = bpf_get_socket_cookie(ctx)};
	struct direct *d = bpf_map_lookup_elem(&directs, &key.client);

	if (!d || !sp || !(d->flags & DIRECT_SPLICED))
		return 1;
	if (sp->messages || d->answered)
		return 0;
	d->flags = (d->flags & ~DIRECT_SPLICED) | DIRECT_LEFT;
	d->sockets[SIDE_CLIENT] = 0;
	key.side = SIDE_CLIENT;
	bpf_map_delete_elem(&spliced, &key);
	key.side = SIDE_SERVER;
	bpf_map_delete_elem(&spliced, &key);
	return 1;
}

INLINE int may_splice(const struct splice *end)
{
	struct node *n = this_node();

	return n && n->splicing >= (end->own ? SPLICING_TEST : SPLICING_ON);
}

/* A workload's connection to another workload of this node. This end is the
 * first to be established, and the other one follows it into the map or out. */
INLINE void connected_directly(struct bpf_sock_ops *ctx, struct bpf_sock *sk, struct tcp_sock *tcp, const struct socket *s)
{
	struct splice end = {};
	struct direct *d;
	__u32 why;

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
	why = unfit_readers(ctx, tcp, &end);
	if (!may_splice(&end))
		why = FALLBACK_PAUSED;
	else if (s->unspliced)
		why = s->unspliced;
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
