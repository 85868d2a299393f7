//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_msg: hands what one workload sends to another of this node straight to
 * the receiving socket. flows.c puts both ends into the map when they are
 * established.
 *
 * The receiver reads what was redirected before what came by TCP. From
 * redirecting to TCP is therefore a step that may be taken at any time; the
 * other way only when the other end has read all that TCP was given, which its
 * copied_seq tells: it has then reached the sender's write_seq.
 *
 * Redirected data has no window. When there is no room for it in the receiver's
 * buffer the sender turns to TCP, which holds it back.
 *
 * Nobody is spliced who waits inside of read(2) or recv(2). tcp_bpf_recvmsg
 * sleeps once and answers EAGAIN to a blocking socket when it wakes without
 * data, be it for a signal (even one that is restarted after, or ptrace, or a
 * frozen cgroup) or a reset, and it does not know MSG_WAITALL.
 *
 * An object of its own, because a kernel may lack what it needs (the casts
 * came in 6.2), and the capture must work there all the same.
 */
#include "meshproxy.h"

#define SETTLE_EVERY (1 << 16) /* bytes */

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym;
extern void *bpf_rdonly_cast(void *obj, __u32 btf_id) __ksym;

/* bpf_core_type_id_kernel of libbpf's bpf_core_read.h */
#define kernel_type(type) __builtin_btf_type_id(*(type *)0, 1)

INLINE int unspliced(__u32 workload)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &workload);

	return w && w->flags & (WORKLOAD_UNSPLICED | WORKLOAD_BYPASS);
}

/* Whether it is turned off, for all or one of the workloads. */
INLINE __u32 turned_off(struct splice *s)
{
	struct node *n = this_node();

	if (!n || n->splicing < (s->own ? SPLICING_TEST : SPLICING_ON))
		return FALLBACK_PAUSED;
	if (s->generation != n->splice_generation) {
		s->generation = n->splice_generation;
		s->switched_off = unspliced(s->workload) || unspliced(s->endpoint);
	}
	return s->switched_off ? FALLBACK_WORKLOAD : FALLBACK_NONE;
}

INLINE struct tcp_sock *other_end(struct splice *s)
{
	if (!s->to) {
		struct direct *d = bpf_map_lookup_elem(&directs, &s->peer.client);

		if (d)
			s->to = d->sockets[s->peer.side & 1];
	}
	return s->to ? bpf_rdonly_cast((void *)s->to, kernel_type(struct tcp_sock)) : 0;
}

/* kTLS would encrypt on one side only; who sends without a copy waits for the
 * news that the other end has got it. */
INLINE int has_options(const struct tcp_sock *own, const struct tcp_sock *to)
{
	return own->inet_conn.icsk_ulp_ops || to->inet_conn.icsk_ulp_ops ||
	       own->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1ull << enum_value(enum sock_flags, SOCK_ZEROCOPY);
}

/* Whether a message finds room beside what TCP has promised room for: that
 * it would drop, for the sender to try again at ever longer intervals. The
 * promise costs more than its bytes. */
INLINE int has_room(const struct tcp_sock *to, __u32 size)
{
	const struct sock *at = &to->inet_conn.icsk_inet.sk;
	__u32 queued = at->sk_backlog.rmem_alloc.counter, room = at->sk_rcvbuf;
	__s32 promised = to->rcv_wup + to->rcv_wnd - to->rcv_nxt; /* tcp_receive_window */

	if (promised < 0)
		promised = 0;
	if (!queued)
		return size + promised <= room;
	return queued + size + promised + promised / 8 <= room;
}

/* What is against redirecting. */
INLINE __u32 judge(struct splice *s, struct bpf_sock *sk, const struct tcp_sock *own, __u32 size)
{
	const struct tcp_sock *to;
	const struct sock *at;
	__u32 why = turned_off(s);

	if (why)
		return why;
	/* The redirecting path would send even after shutdown(2). */
	if (sk->state != TCP_ESTABLISHED && sk->state != TCP_CLOSE_WAIT)
		return FALLBACK_CLOSING;
	to = other_end(s);
	if (!to)
		return FALLBACK_PEER;
	at = &to->inet_conn.icsk_inet.sk;
	if (!at->sk_socket)
		return FALLBACK_PEER; /* not accepted */
	if (is_blocking(at) || is_blocking(&own->inet_conn.icsk_inet.sk))
		return FALLBACK_BLOCKING;
	if (has_options(own, to))
		return FALLBACK_OPTIONS;
	if (!has_room(to, size))
		return FALLBACK_MEMORY;
	/* Data may go by TCP before this program sees any: TCP Fast Open, or a
	 * sender that waited for the connection inside of sendmsg(2). */
	if (s->by_tcp || !s->messages) {
		if (to->copied_seq != own->write_seq)
			return s->fallback ? s->fallback : FALLBACK_PEER;
		s->by_tcp = 0;
	}
	return FALLBACK_NONE;
}

SEC("sk_msg")
int splice(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *own;
	struct splice_key peer;
	struct splice *s;
	struct sk_msg *m;
	__u32 why;

	if (!sk)
		return SK_PASS;
	s = bpf_sk_storage_get(&splices, sk, 0, 0);
	if (!s)
		return SK_PASS;
	m = bpf_cast_to_kern_ctx(msg);
	own = bpf_rdonly_cast(m->sk, kernel_type(struct tcp_sock));
	/* What TCP took, since it does not always take all it is given. */
	count_sent(s, own->write_seq);
	if (s->bytes >= SETTLE_EVERY)
		settle(s);
	why = judge(s, sk, own, msg->size);
	if (!why) {
		peer = s->peer;
		/* SK_DROP when the other end is not there; the verdict is ours. */
		if (bpf_msg_redirect_hash(msg, &spliced, &peer, BPF_F_INGRESS) == SK_PASS) {
			s->messages++;
			s->bytes += msg->size;
			s->redirected += msg->size;
			s->fallback = FALLBACK_NONE;
			return SK_PASS;
		}
		why = FALLBACK_PEER;
	}
	s->by_tcp = 1;
	if (s->fallback != why) {
		s->fallback = why;
		count_fallback(s->workload, s->service, why);
	}
	return SK_PASS;
}

/*
 * Has what comes by TCP queued where redirected data is. Without it a read gives
 * what was redirected, and what came by TCP behind that only to the next read;
 * who waits for an edge after a short read, as epoll(7) allows, would wait for
 * ever when the sender waits too. The kernel runs it for every segment, under
 * the receiver's lock, and goes on counting it against the receiver's window.
 */
SEC("sk_skb/stream_verdict")
int queue(void *skb __attribute__((unused)))
{
	return SK_PASS;
}
