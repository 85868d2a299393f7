//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_msg: hands what an application sends to the proxy, and the proxy to the
 * application, straight to the receiving socket; hops.c puts both ends into the
 * map. As in splice.c, what was redirected is read before what came by TCP, and
 * nobody redirects while the other end has something by TCP to read.
 *
 * The proxy reads until there is nothing, so an application may turn to TCP at
 * any time. The other way, an application that is told of readiness by edges
 * and takes a short read for the end would miss what came by TCP meanwhile: it
 * gets no second edge. So the proxy's end turns to TCP only when the application
 * has read all that was redirected. What finds no room then goes all the same,
 * once; the proxy hears of it (hops_wanted), sends nothing more until the
 * application has read, and takes both ends out of the map (hop_control).
 *
 * Streams of large messages leave, too. They gain nothing by redirecting, since
 * the receiver falls behind, and the way through this program costs a tenth.
 */
#include "habits.h"
#include "hop.h"

#define LARGEST (1 << 16) /* of the messages that are redirected */
#define MARGIN (1 << 19) /* two of the proxy's largest writes */
#define PSOCK_MASK (~7ull) /* SK_USER_DATA_PTRMASK */

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(void *obj, __u32 btf_id) __ksym;

/* bpf_core_type_id_kernel of libbpf's bpf_core_read.h */
#define kernel_type(type) __builtin_btf_type_id(*(type *)0, 1)

INLINE struct tcp_sock *as_tcp(__u64 sk)
{
	return bpf_rdonly_cast((void *)sk, kernel_type(struct tcp_sock));
}

/* What is in force for an end: looked up only after something has changed. */
INLINE __u32 turned_off(struct hop_end *e, const struct node *n)
{
	if (n->hopping < (e->own ? SPLICING_TEST : SPLICING_ON))
		return FALLBACK_PAUSED;
	if (e->generation != n->splice_generation) {
		e->generation = n->splice_generation;
		e->switched_off = is_unspliced(e->workload);
	}
	return e->switched_off ? FALLBACK_WORKLOAD : FALLBACK_NONE;
}

INLINE int is_leaving(struct hop_end *e, const struct node *n)
{
	struct hop *h;

	if (e->leaves != n->hop_leaves) {
		e->leaves = n->hop_leaves;
		h = bpf_map_lookup_elem(&hops, &e->peer.client);
		e->leaving = !h || h->leaving;
	}
	return e->leaving;
}

INLINE struct tcp_sock *other_end(struct hop_end *e)
{
	if (!e->to) {
		struct hop *h = bpf_map_lookup_elem(&hops, &e->peer.client);

		if (h && e->peer.side == SIDE_CLIENT)
			note_answer(&h->answered);
		if (h)
			e->to = h->sockets[e->peer.side & 1];
	}
	return e->to ? as_tcp(e->to) : 0;
}

/* Whether a socket has something to read that was redirected to it. */
INLINE int has_unread(const struct sock *sk)
{
	__u64 at = (__u64)sk->sk_user_data & PSOCK_MASK;
	struct sk_psock *psock;

	if (!at)
		return 0;
	psock = bpf_rdonly_cast((void *)at, kernel_type(struct sk_psock));
	return (__u64)psock->ingress_msg.next != (__u64)__builtin_preserve_access_index(&psock->ingress_msg);
}

INLINE int has_options(const struct tcp_sock *own, const struct tcp_sock *to)
{
	return own->inet_conn.icsk_ulp_ops || to->inet_conn.icsk_ulp_ops ||
	       own->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1ull << enum_value(enum sock_flags, SOCK_ZEROCOPY);
}

/* Whether a message finds room beside what TCP has promised room for. */
INLINE int has_room(const struct tcp_sock *to, __u32 size)
{
	const struct sock *at = &to->inet_conn.icsk_inet.sk;
	__s32 promised = to->rcv_wup + to->rcv_wnd - to->rcv_nxt; /* tcp_receive_window */

	if (promised < 0)
		promised = 0;
	return at->sk_backlog.rmem_alloc.counter + size + promised <= (__u32)at->sk_rcvbuf;
}

/* Whether a message that finds no room may go all the same, because a write of
 * the proxy's is not to go half this way and half that. A proxy that does not
 * stop after it, as it should, doesn't fill the memory. */
INLINE int has_margin(const struct tcp_sock *to)
{
	const struct sock *at = &to->inet_conn.icsk_inet.sk;

	return at->sk_backlog.rmem_alloc.counter < at->sk_rcvbuf + MARGIN;
}

/* What is against redirecting. */
INLINE __u32 judge(struct hop_end *e, const struct node *n, struct bpf_sock *sk, const struct tcp_sock *own,
		   const struct tcp_sock *to, __u32 size)
{
	const struct sock *at = &to->inet_conn.icsk_inet.sk;
	__u32 why = turned_off(e, n);

	if (why)
		return why;
	/* The redirecting path would send even after shutdown(2). */
	if (sk->state != TCP_ESTABLISHED && sk->state != TCP_CLOSE_WAIT)
		return FALLBACK_CLOSING;
	if (!at->sk_socket)
		return FALLBACK_PEER; /* not accepted */
	if (is_blocking(e->proxy ? at : &own->inet_conn.icsk_inet.sk))
		return FALLBACK_BLOCKING;
	if (has_options(own, to))
		return FALLBACK_OPTIONS;
	if (size > LARGEST || !has_room(to, size))
		return FALLBACK_MEMORY;
	return FALLBACK_NONE;
}

/* Makes the proxy take the connection out of the map. */
INLINE void want_leave(struct hop_end *e, struct node *n)
{
	struct hop *h = bpf_map_lookup_elem(&hops, &e->peer.client);

	if (!h || h->wanted)
		return;
	h->wanted = 1;
	__sync_fetch_and_add(&n->hops_wanted, 1);
}

INLINE int redirect_hop(struct sk_msg_md *msg, struct hop_end *e)
{
	struct splice_key peer = e->peer;

	/* SK_DROP when the other end is not there; the verdict is ours. */
	if ((e->proxy ? bpf_msg_redirect_hash(msg, &hopping_apps, &peer, BPF_F_INGRESS)
		      : bpf_msg_redirect_hash(msg, &hopping, &peer, BPF_F_INGRESS)) != SK_PASS)
		return 0;
	e->messages++;
	e->fallback = FALLBACK_NONE;
	count_hop(e->proxy, messages, 1);
	count_hop(e->proxy, redirected, msg->size);
	return 1;
}

/* Of a client that has turned blocking no further connections are spliced. One that
 * is about to send its first message is not lost yet: see sending. */
INLINE void learn_blocking(const struct hop_end *e)
{
	int captured = e->peer.side == (e->proxy ? SIDE_CLIENT : SIDE_SERVER);

	if (captured && (e->proxy || e->began || e->messages))
		learn(e->workload, e->service, waits);
}

INLINE void pass_hop(struct hop_end *e, __u32 why)
{
	if (e->fallback != why) {
		e->fallback = why;
		count_hop_fallback(e->proxy, why);
		if (why == FALLBACK_BLOCKING)
			learn_blocking(e);
	}
	e->by_tcp = 1;
	e->began = 1;
}

SEC("sk_msg")
int hop(struct sk_msg_md *msg)
{
	struct node *n = this_node();
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *own, *to;
	struct hop_end *e;
	struct sk_msg *m;
	int unread;
	__u32 why;

	if (!sk || !n)
		return SK_PASS;
	e = bpf_sk_storage_get(&hop_ends, sk, 0, 0);
	if (!e || is_leaving(e, n))
		return SK_PASS;
	to = other_end(e);
	if (!to) {
		pass_hop(e, FALLBACK_PEER);
		return SK_PASS;
	}
	m = bpf_cast_to_kern_ctx(msg);
	own = bpf_rdonly_cast(m->sk, kernel_type(struct tcp_sock));
	/* TCP Fast Open sends before this program sees anything. */
	if (e->by_tcp || !e->messages) {
		if (to->copied_seq != own->write_seq) {
			pass_hop(e, e->fallback ? e->fallback : FALLBACK_PEER);
			return SK_PASS;
		}
		e->by_tcp = 0;
	}
	why = judge(e, n, sk, own, to, msg->size);
	if (!why && redirect_hop(msg, e))
		return SK_PASS;
	if (!why)
		why = FALLBACK_PEER;
	unread = has_unread(&to->inet_conn.icsk_inet.sk);
	if (e->proxy) {
		if (unread || why == FALLBACK_BLOCKING || why == FALLBACK_OPTIONS)
			want_leave(e, n);
		if (unread && has_margin(to) && redirect_hop(msg, e))
			return SK_PASS;
	} else if (unread) {
		__sync_fetch_and_add(&n->hops_mixed, 1);
	}
	pass_hop(e, why);
	return SK_PASS;
}

/* Whether an application has yet to read what the proxy sent by TCP. It would be
 * lost with the socket's place in the map when it is queued there. */
INLINE int is_behind(__u64 app, __u64 proxy)
{
	const struct tcp_sock *to = as_tcp(app), *own = as_tcp(proxy);
	__u32 rest = own->write_seq - to->copied_seq;
	__u32 state = own->inet_conn.icsk_inet.sk.__sk_common.skc_state;

	if (!proxy || state == TCP_CLOSE)
		return 0;
	/* The FIN has a number too, which may or may not count as read. */
	return rest > (state != TCP_ESTABLISHED && state != TCP_CLOSE_WAIT);
}

/* Tells about a hop, and ends redirecting. An end that is taken out of the map
 * keeps its psock for as long as somebody is inside of its sendmsg, and may
 * still redirect what was judged before. */
SEC("syscall")
int hop_control(struct hop_query *q)
{
	__u64 client = q->client;
	struct hop *h = bpf_map_lookup_elem(&hops, &client);
	struct node *n = this_node();
	struct sock *app, *proxy;
	__u32 side = q->application & 1;

	if (!h || !n)
		return 0;
	q->found = 1;
	q->wanted = h->wanted;
	if (q->leave && !h->leaving) {
		h->leaving = 1;
		__sync_fetch_and_add(&n->hop_leaves, 1);
		count_hop(!side, left, 1);
	}
	if (h->sockets[side]) {
		app = &as_tcp(h->sockets[side])->inet_conn.icsk_inet.sk;
		q->unread = has_unread(app) || is_behind(h->sockets[side], h->sockets[!side]);
		q->pending = app->sk_user_data != 0;
	}
	if (h->sockets[!side]) {
		proxy = &as_tcp(h->sockets[!side])->inet_conn.icsk_inet.sk;
		q->pending |= has_unread(proxy);
	}
	return 0;
}
