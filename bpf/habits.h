/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How workloads read. Who waits inside of read(2), or uses splice(2), must not be
 * spliced, and is seen to do so only when it reads: the first connection of each
 * client to a service, as the first one to a listener, is TCP and is watched.
 *
 * Clients of one kind may read in two ways: redis-benchmark asks for the server's
 * configuration on a connection that blocks, and makes all others that don't. Both
 * connect without blocking. So each connection is looked at again when it is about
 * to send its first message, and leaves the map if it blocks by then, before it
 * can wait for the answer. That needs a client that speaks first: of a workload
 * that was seen to wait, or to have its socket block later, nothing is spliced.
 */
#pragma once

#include "meshproxy.h"

INLINE struct habit habits_of(__u32 workload, __u32 service)
{
	struct traffic_key key = {workload, service};
	struct habit *h = bpf_map_lookup_elem(&habits, &key), none = {};

	return h ? *h : none;
}

INLINE struct habit *make_habits(__u32 workload, __u32 service)
{
	struct traffic_key key = {workload, service};
	struct habit *h = bpf_map_lookup_elem(&habits, &key), none = {};

	if (h)
		return h;
	bpf_map_update_elem(&habits, &key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&habits, &key);
}

/* Whether this is news. */
#define learn(workload, service, field)                              \
	({                                                           \
		struct habit *h_ = make_habits(workload, service);   \
		int news_ = h_ && !h_->field;                        \
		if (news_)                                           \
			h_->field = 1;                               \
		news_;                                               \
	})

/* The server's side has something to send. Its client must not see itself unanswered
 * and leave, after this side has seen that it does not block: the exchange, whose
 * result is used for that, is a full barrier. Kernels that splice know it (5.12). */
INLINE void note_answer(__u32 *answered)
{
	__u32 before = __sync_fetch_and_or(answered, 1);

	asm volatile("" ::"r"(before));
}

/* Whether anything of what came has been read. */
INLINE int has_read(const struct tcp_sock *tcp)
{
	return tcp->bytes_received > (__u32)(tcp->rcv_nxt - tcp->copied_seq);
}

/* Whether somebody waits for a socket, inside of a system call or with epoll. */
INLINE int is_awaited(const struct sock *sk)
{
	struct socket_wq *wq = sk->sk_wq;
	struct list_head *first = wq ? wq->wait.head.next : 0;

	/* The head of an empty list is its own first element. */
	return first && first->next != first;
}
