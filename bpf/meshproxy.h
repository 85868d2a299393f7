/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the concerns have in common: addresses, who is calling, counting. */
#pragma once

#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* What the kernel can do; set before load, dead code behind them is removed by
 * the verifier together with calls that it does not know. */
const volatile __u8 have_set_retval;  /* 5.18: refuse with an errno of our own */
const volatile __u8 have_pid;         /* 6.10: bpf_get_current_pid_tgid in cgroup hooks */
const volatile __u8 have_probe_read;  /* bpf_probe_read_kernel in sockops */
const volatile __u8 have_mptcp;       /* 5.19: from a subflow to the MPTCP socket above it */
const volatile __u8 have_direct;      /* the verifier follows all of the direct way */

#define V4_MAPPED htonl(0xffff)
#define DNS_SERVER_PORT 53
#define FLOWS_FULL_PAUSE 100000000ull /* ns */
#define NAMESPACE_SEEN_PAUSE 100000000ull

/* Reads a field of a context. The compiler must not merge the loads of two
 * branches into one load through a chosen pointer: the verifier wants the
 * offset constant. */
#define ctx_read(field)                                    \
	({                                                 \
		__u32 v_ = *(volatile const __u32 *)&(field); \
		asm volatile("" : "+r"(v_));               \
		v_;                                        \
	})

INLINE void set_v4(struct address *a, __u32 ip)
{
	a->ip[0] = 0;
	a->ip[1] = 0;
	a->ip[2] = V4_MAPPED;
	a->ip[3] = ip;
}

INLINE void set_v6(struct address *a, const __u32 *ip)
{
	a->ip[0] = ip[0];
	a->ip[1] = ip[1];
	a->ip[2] = ip[2];
	a->ip[3] = ip[3];
}

INLINE int is_v4(const struct address *a)
{
	return !a->ip[0] && !a->ip[1] && a->ip[2] == V4_MAPPED;
}

INLINE int is_loopback(const struct address *a)
{
	if (a->ip[0] || a->ip[1])
		return 0;
	if (a->ip[2] == V4_MAPPED)
		return (a->ip[3] & htonl(0xff000000)) == htonl(0x7f000000);
	return !a->ip[2] && a->ip[3] == htonl(1);
}

/* The loopback address of the same family. */
INLINE void set_loopback(struct address *a)
{
	if (is_v4(a)) {
		a->ip[3] = htonl(0x7f000001);
		return;
	}
	a->ip[0] = 0;
	a->ip[1] = 0;
	a->ip[2] = 0;
	a->ip[3] = htonl(1);
}

/* connect(2) to the unspecified address means loopback. */
INLINE void resolve_unspecified(struct address *a)
{
	if (!a->ip[0] && !a->ip[1] && !a->ip[3] && (!a->ip[2] || a->ip[2] == V4_MAPPED))
		set_loopback(a);
}

INLINE struct node *this_node(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&node, &zero);
}

INLINE int proxy_alive(const struct node *n)
{
	/* A heartbeat from "after" now is one that another CPU just wrote. */
	__s64 age = bpf_ktime_get_ns() - n->heartbeat;

	return n->heartbeat && age <= (__s64)n->heartbeat_timeout;
}

/* The workload of the calling process, 0 if none. Only in process context. */
INLINE __u32 current_workload(const struct node *n)
{
	__u64 id = bpf_get_current_cgroup_id();
	__u32 *w = bpf_map_lookup_elem(&cgroups, &id);

	if (w)
		return *w;
	/* The nearest enrolled ancestor; only depths at which there is one. */
	for (int level = MAX_LEVELS - 1; level >= 0; level--) {
		if (!n->levels[level])
			continue;
		id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			continue;
		w = bpf_map_lookup_elem(&cgroups, &id);
		if (w)
			return *w;
	}
	if (n->has_users) {
		__u32 uid = bpf_get_current_uid_gid();

		w = bpf_map_lookup_elem(&users, &uid);
		if (w)
			return *w;
	}
	return 0;
}

INLINE void bump(void *map, const void *key)
{
	__u64 one = 1;
	__u64 *n = bpf_map_lookup_elem(map, key);

	if (n) {
		(*n)++; /* per CPU */
		return;
	}
	bpf_map_update_elem(map, key, &one, BPF_NOEXIST);
}

/* Bumps a field of struct counters. */
#define count(field)                                                   \
	({                                                             \
		__u32 zero_ = 0;                                       \
		struct counters *c_ = bpf_map_lookup_elem(&counters, &zero_); \
		if (c_)                                                \
			c_->field++;                                   \
	})

INLINE void count_connection(__u32 workload, __u32 service, __u32 outcome)
{
	struct connection_key key = {workload, service, outcome};

	bump(&connections, &key);
}

INLINE void count_rejection(__u32 workload, __u32 reason)
{
	struct rejection_key key = {workload, reason};

	bump(&rejections, &key);
}

INLINE struct event *new_event(__u32 kind, __u32 reason, __u32 workload)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		count(events_lost);
		return 0;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->reason = reason;
	e->workload = workload;
	return e;
}

INLINE int excluded(const struct workload *w, __u32 id, __u32 direction, __u16 port, const struct address *a)
{
	if (w->flags & (direction == OUT ? WORKLOAD_OUT_PORTS : WORKLOAD_IN_PORTS)) {
		struct port_exclusion key = {id, port, direction, 0};

		if (bpf_map_lookup_elem(&port_exclusions, &key))
			return 1;
	}
	if (w->flags & (direction == OUT ? WORKLOAD_OUT_CIDRS : WORKLOAD_IN_CIDRS)) {
		struct cidr_exclusion key = {
			.prefixlen = 32 + 32 + 128,
			.workload = id,
			.direction = direction,
			.ip = {a->ip[0], a->ip[1], a->ip[2], a->ip[3]},
		};

		if (bpf_map_lookup_elem(&cidr_exclusions, &key))
			return 1;
	}
	return 0;
}

INLINE int filter_port(__u16 port)
{
	__u32 slot = port >> 6;
	struct port_filter *f = bpf_map_lookup_elem(&port_filter, &slot);

	return f && f->set[port & 63];
}

/* Who listens: on the address, on any of its family, on any. */
INLINE struct port *find_port(__u64 netns, const struct address *local)
{
	struct port_key key = {.netns = netns, .address = *local};
	struct port *p = bpf_map_lookup_elem(&ports, &key);

	if (p)
		return p;
	if (is_v4(local)) {
		key.address.ip[3] = 0;
		p = bpf_map_lookup_elem(&ports, &key);
		if (p)
			return p;
	}
	key.address.ip[0] = 0;
	key.address.ip[1] = 0;
	key.address.ip[2] = 0;
	key.address.ip[3] = 0;
	return bpf_map_lookup_elem(&ports, &key);
}

/* What goes from a workload to a service without the proxy. */
INLINE struct traffic *traffic_of(__u32 workload, __u32 service)
{
	struct traffic_key key = {workload, service};
	struct traffic *t = bpf_map_lookup_elem(&traffic, &key);
	struct traffic none;

	if (t)
		return t;
	__builtin_memset(&none, 0, sizeof(none));
	bpf_map_update_elem(&traffic, &key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&traffic, &key);
}

/* A softirq can come between load and store, even of this CPU's own copy. */
#define count_traffic(workload, service, field, n)                \
	({                                                        \
		struct traffic *t_ = traffic_of(workload, service); \
		if (t_)                                           \
			__sync_fetch_and_add(&t_->field, n);      \
	})

INLINE void count_fallback(__u32 workload, __u32 service, __u32 why)
{
	struct traffic *t = traffic_of(workload, service);

	if (t && why < FALLBACKS)
		__sync_fetch_and_add(&t->fallbacks[why], 1);
}

/* Whether whoever reads from a socket may wait inside of read(2), as far as
 * anybody can tell: there is no file before accept(2). */
INLINE int is_blocking(const struct sock *sk)
{
	struct socket___kernel *s = sk->sk_socket;

	return s && !(s->file->f_flags & O_NONBLOCK);
}

/* Adds what TCP has taken from an end since. */
INLINE void count_sent(struct splice *s, __u32 write_seq)
{
	s->bytes += write_seq - s->counted;
	s->counted = write_seq;
}

/* Adds what an end has sent to the totals. */
INLINE void settle(struct splice *s)
{
	struct direct *d = bpf_map_lookup_elem(&directs, &s->peer.client);
	__u64 n = s->bytes;

	if (d && s->peer.side == SIDE_SERVER)
		__sync_fetch_and_add(&d->sent, n);
	else if (d)
		__sync_fetch_and_add(&d->received, n);
	count_traffic(s->workload, s->service, redirected, s->redirected);
	s->bytes = 0;
	s->redirected = 0;
	if (s->peer.side == SIDE_SERVER)
		count_traffic(s->workload, s->service, sent, n);
	else
		count_traffic(s->workload, s->service, received, n);
}
