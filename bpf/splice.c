//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_msg: hands what one workload sends to another of this node straight to
 * the receiving socket. direct.c puts both ends into the map when they are
 * established.
 *
 * The receiver reads what was redirected before what came by TCP. From
 * redirecting to TCP is therefore a step that may be taken at any time; the
 * other way only when the other end has read all that TCP was given, which its
 * copied_seq tells: it has then reached the sender's write_seq.
 *
 * Redirected data has no window. When there is no room for it at the receiver's
 * the sender turns to TCP, which holds it back.
 *
 * Nobody is spliced who waits inside of read(2) or recv(2). tcp_bpf_recvmsg
 * sleeps once and answers EAGAIN to a blocking socket when it wakes without
 * data, be it for a signal (even one that is restarted after, or ptrace, or a
 * frozen cgroup) or a reset, and it does not know MSG_WAITALL.
 *
 * An object of its own, because a kernel may lack what it needs (the casts
 * came in 6.2), and the capture must work there all the same.
 */
#include "habits.h"

#define SETTLE_EVERY (1 << 16) /* bytes */
#define ROOM_MOST (1 << 20)    /* of a receiver that has read as much */
#define GONE_MOST (1 << 30)
#define LOOKS 4000 /* some microseconds */

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

		if (d && s->peer.side == SIDE_CLIENT)
			note_answer(&d->answered);
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

/* How much may be unread. As TCP's buffer does, it grows with what the receiver
 * has read; one that does not read gets no more than the buffer that it has. */
INLINE __u32 room_of(const struct splice *s, const struct sock *at, __u32 queued)
{
	__u32 read = s->gone > queued ? s->gone - queued : 0;
	__u32 room = at->sk_rcvbuf + read, most = ROOM_MOST;
	__u32 limit = at->__sk_common.skc_net.net->ipv4.sysctl_tcp_rmem[2];

	if (most > limit / 2)
		most = limit / 2;
	return room < most ? room : most;
}

/* Whether a message finds room. What comes by TCP is taken beyond it: the kernel
 * makes the buffer as large as what is in it (tcp_clamp_window), up to
 * tcp_rmem[2]. A buffer of the application's choice (SO_RCVBUF) stays as it is,
 * and TCP would drop what it has promised room for, for the sender to try again
 * at ever longer intervals. The promise costs more than its bytes. */
INLINE int has_room(const struct splice *s, const struct tcp_sock *to, __u32 size)
{
	const struct sock *at = &to->inet_conn.icsk_inet.sk;
	__u32 queued = at->sk_backlog.rmem_alloc.counter;
	__s32 promised;

	if (!(read_bits(at, sk_userlocks) & SOCK_RCVBUF_LOCK))
		return queued + size <= room_of(s, at, queued);
	promised = to->rcv_wup + to->rcv_wnd - to->rcv_nxt; /* tcp_receive_window */
	if (promised < 0)
		promised = 0;
	if (queued)
		promised += promised / 8;
	return queued + size + promised <= (__u32)at->sk_rcvbuf;
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
	if (!has_room(s, to, size))
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

static long is_unlocked(__u32 i __attribute__((unused)), __u64 *to)
{
	const struct tcp_sock *tcp = bpf_rdonly_cast((void *)*to, kernel_type(struct tcp_sock));

	return !*(const volatile int *)&tcp->inet_conn.icsk_inet.sk.sk_lock.owned;
}

/* Redirecting takes the receiver's lock, which it holds while it copies. To wait
 * for that here, if it isn't for long, is less than to be put to sleep and woken. */
INLINE void await_lock(const struct splice *s)
{
	__u64 to = s->to;

	bpf_loop(LOOKS, is_unlocked, &to, 0);
}

INLINE int redirect(struct sk_msg_md *msg, struct splice *s)
{
	struct splice_key peer = s->peer;

	await_lock(s);
	/* SK_DROP when the other end is not there; the verdict is ours. */
	if (bpf_msg_redirect_hash(msg, &spliced, &peer, BPF_F_INGRESS) != SK_PASS)
		return 0;
	s->messages++;
	s->bytes += msg->size;
	s->redirected += msg->size;
	if (s->gone < GONE_MOST)
		s->gone += msg->size;
	s->fallback = FALLBACK_NONE;
	return 1;
}

/* A client that has turned blocking: its next connections are TCP from the start.
 * One that is about to send its first message is not lost yet: see sending. A
 * server's socket may block until a child process has it (PostgreSQL's do). */
INLINE void learn_blocking(struct splice *s, const struct tcp_sock *own)
{
	const struct tcp_sock *client = s->peer.side == SIDE_SERVER ? own : other_end(s);

	if (s->peer.side == SIDE_SERVER && !s->began && !s->messages)
		return;
	if (client && is_blocking(&client->inet_conn.icsk_inet.sk))
		learn(s->workload, s->service, waits);
}

SEC("sk_msg")
int splice(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct tcp_sock *own;
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
	if (!why && redirect(msg, s))
		return SK_PASS;
	if (!why)
		why = FALLBACK_PEER;
	s->by_tcp = 1;
	if (s->fallback != why) {
		s->fallback = why;
		count_fallback(s->workload, s->service, why);
		if (why == FALLBACK_BLOCKING && !s->own)
			learn_blocking(s, own);
	}
	s->began = 1;
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
