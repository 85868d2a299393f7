//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/connect4|6: who is calling, where to, and what becomes of it.
 *
 * A destination of the mesh is rewritten to the proxy's listener on loopback,
 * in the socket's own namespace; what was dialled stays in the socket's
 * storage, from where flows.c publishes it before the SYN. Anything else is
 * left exactly as it is, so that a passthrough keeps its source address,
 * device and options.
 */
#include "meshproxy.h"

enum verdict { LEAVE, REWRITE, REFUSE };

/* A connection of a workload that has to be judged. */
struct dial {
	struct bpf_sock_addr *ctx;
	struct node *node;
	struct workload *workload;
	__u32 id;
	__u64 netns;
	struct socket *socket; /* storage, once there is some */
	struct address to;     /* dialled; then where to go instead */
	struct destination_key found; /* the destination's, once there is one */
};

INLINE enum verdict refuse(struct dial *d, __u32 kind, __u32 reason)
{
	struct event *e;

	count_rejection(d->id, reason);
	e = new_event(kind, reason, d->id);
	if (e) {
		e->cgroup = bpf_get_current_cgroup_id();
		e->netns = d->netns;
		e->address = d->to;
		if (have_pid)
			e->pid = bpf_get_current_pid_tgid() >> 32;
		bpf_ringbuf_submit(e, 0);
	}
	if (have_set_retval)
		bpf_set_retval(-ECONNREFUSED);
	return REFUSE;
}

INLINE enum verdict refuse_without_listeners(struct dial *d)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 *seen = bpf_map_lookup_elem(&namespaces_seen, &d->netns);

	/* Clients retry; user space needs to hear of a namespace only once in
	 * a while. */
	if (seen && now - *seen < NAMESPACE_SEEN_PAUSE) {
		count_rejection(d->id, REASON_NO_LISTENERS);
		if (have_set_retval)
			bpf_set_retval(-ECONNREFUSED);
		return REFUSE;
	}
	bpf_map_update_elem(&namespaces_seen, &d->netns, &now, BPF_ANY);
	return refuse(d, EVENT_NETNS_SEEN, REASON_NO_LISTENERS);
}

/* A killed proxy has no listener from one moment to the next, while its
 * heartbeat is fresh for seconds. In a namespace that has none yet the
 * heartbeat alone counts. */
INLINE int proxy_serves(struct dial *d, int has_listeners)
{
	struct bpf_sock_tuple4 at = {
		.daddr = htonl(0x7f000001),
		.dport = htons(d->node->outbound_port),
	};
	struct bpf_sock *listener;

	if (!proxy_alive(d->node))
		return 0;
	if (!has_listeners)
		return 1;
	listener = bpf_sk_lookup_tcp(d->ctx, &at, sizeof(at), BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return 0;
	bpf_sk_release(listener);
	return 1;
}

INLINE int flows_are_full(const struct node *n)
{
	return n->flows_full && bpf_ktime_get_ns() - n->flows_full < FLOWS_FULL_PAUSE;
}

/* Upstream of the workload, then anybody's destination, then a virtual IP
 * without the port that was dialled: its own row has port 0 and *unknown is
 * set, unless that row stands for every port. Loopback belongs to the application unless it is an upstream. */
INLINE struct destination *find_destination(struct dial *d, int *unknown)
{
	struct destination *to;

	*unknown = 0;
	d->found.workload = d->id;
	d->found.address = d->to;
	if (d->workload->flags & WORKLOAD_UPSTREAMS) {
		to = bpf_map_lookup_elem(&destinations, &d->found);
		if (to)
			return to;
	}
	if (is_loopback(&d->to))
		return 0;
	d->found.workload = 0;
	to = bpf_map_lookup_elem(&destinations, &d->found);
	if (to)
		return to;
	d->found.address.port = 0;
	to = bpf_map_lookup_elem(&destinations, &d->found);
	if (to && !(to->flags & DESTINATION_ANY_PORT))
		*unknown = 1;
	return to;
}

/* A socket that is bound to a device cannot reach loopback. */
INLINE int release_device(struct dial *d, __u32 *device)
{
	char none[4] = {};
	__u32 bound = d->ctx->sk->bound_dev_if;

	*device = 0;
	if (!bound || bound == LOOPBACK_IFINDEX)
		return 0;
	*device = bound;
	return bpf_setsockopt(d->ctx, SOL_SOCKET, SO_BINDTODEVICE, none, sizeof(none));
}

/* What getpeername shows of an MPTCP socket: the hook gets a subflow of it here,
 * and the socket itself there. */
INLINE void show_on_mptcp(struct dial *d, __u32 flags)
{
	struct socket *s;
	void *sk;

	if (!have_mptcp)
		return;
	sk = bpf_skc_to_mptcp_sock(d->ctx->sk);
	if (!sk)
		return;
	s = bpf_sk_storage_get(&sockets, sk, 0, flags ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!s)
		return;
	s->flags = flags;
	s->address = d->to;
}

INLINE void forget_direct(struct dial *d)
{
	__u64 cookie;

	if (!(d->socket->flags & SOCKET_DIRECT))
		return;
	cookie = bpf_get_socket_cookie(d->ctx);
	bpf_map_delete_elem(&directs, &cookie);
}

/* A socket that an earlier connect(2) captured goes elsewhere now. */
INLINE void forget_capture(struct dial *d)
{
	if (!d->socket)
		return;
	if (d->socket->device) {
		int device = d->socket->device;

		bpf_setsockopt(d->ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &device, sizeof(device));
		d->socket->device = 0;
	}
	forget_direct(d);
	d->socket->flags = 0;
	show_on_mptcp(d, 0);
}

INLINE enum verdict leave(struct dial *d, __u32 outcome)
{
	forget_capture(d);
	count_connection(d->id, 0, outcome);
	return LEAVE;
}

/* Sends the socket to d->to and remembers what it dialled. */
INLINE enum verdict redirect(struct dial *d, __u32 service, __u32 flags, const struct address *to)
{
	__u32 device = 0;

	if (!d->socket)
		d->socket = bpf_sk_storage_get(&sockets, d->ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!d->socket)
		return refuse(d, EVENT_REFUSED, REASON_NO_MEMORY);
	if (is_loopback(to)) {
		if (release_device(d, &device))
			return refuse(d, EVENT_REFUSED, REASON_DEVICE);
		if (device)
			d->socket->device = device;
	}
	forget_direct(d);
	d->socket->flags = flags;
	d->socket->workload = d->id;
	d->socket->service = service;
	d->socket->address = d->to;
	show_on_mptcp(d, flags & SOCKET_NAMED);
	d->to = *to;
	return REWRITE;
}

INLINE enum verdict to_proxy(struct dial *d, __u32 service, __u32 flags, __u16 port)
{
	struct address proxy = d->to;
	enum verdict v;

	set_loopback(&proxy);
	proxy.port = port;
	v = redirect(d, service, flags, &proxy);
	if (v == REWRITE)
		count_connection(d->id, service, flags & SOCKET_DNS ? OUTCOME_DNS : OUTCOME_CAPTURED);
	return v;
}

INLINE enum verdict judge_dns(struct dial *d)
{
	int has_listeners = bpf_map_lookup_elem(&namespaces, &d->netns) != 0;

	if (!proxy_serves(d, has_listeners)) {
		if (d->workload->flags & WORKLOAD_DOWN_DIRECT)
			return leave(d, OUTCOME_DIRECT);
		return refuse(d, EVENT_REFUSED, REASON_PROXY_DOWN);
	}
	if (!has_listeners)
		return refuse_without_listeners(d);
	return to_proxy(d, 0, SOCKET_NAMED | SOCKET_DNS, d->node->dns_port);
}

/* A socket that is bound to where it cannot reach every address of the node
 * needs the proxy's help. */
INLINE int is_bound(struct dial *d)
{
	struct bpf_sock *sk = d->ctx->sk;
	struct address source;

	if (sk->bound_dev_if)
		return 1;
	if (sk->family == AF_INET) {
		set_v4(&source, sk->src_ip4);
	} else {
		source.ip[0] = sk->src_ip6[0];
		source.ip[1] = sk->src_ip6[1];
		source.ip[2] = sk->src_ip6[2];
		source.ip[3] = sk->src_ip6[3];
	}
	return is_loopback(&source);
}

/* An endpoint that was chosen. */
struct choice {
	struct local local;
	__u32 unspliced; /* why not */
};

/* Sends the socket to the endpoint itself. The connection is on record before
 * it exists, so that a policy that changes finds it; without room it goes the
 * way of the proxy. */
INLINE enum verdict to_local(struct dial *d, __u32 service, const struct choice *c)
{
	const struct local *l = &c->local;
	struct direct conn;
	__u64 cookie;
	enum verdict v;

	__builtin_memset(&conn, 0, sizeof(conn));
	conn.netns = d->netns;
	conn.endpoint_netns = l->netns;
	conn.opened = bpf_ktime_get_ns();
	conn.workload = d->id;
	conn.service = service;
	conn.endpoint = l->workload;
	conn.flags = d->ctx->family == AF_INET6 ? DIRECT_IPV6 : 0;
	conn.dialled = d->to;
	conn.remote = l->address;
	v = redirect(d, service, SOCKET_NAMED | SOCKET_DIRECT, &l->address);
	if (v != REWRITE)
		return v;
	cookie = bpf_get_socket_cookie(d->ctx);
	if (bpf_map_update_elem(&directs, &cookie, &conn, BPF_ANY)) {
		count(directs_full);
		d->to = conn.dialled;
		d->socket->flags = 0;
		show_on_mptcp(d, 0);
		return LEAVE;
	}
	d->socket->netns = l->netns;
	d->socket->endpoint = l->workload;
	d->socket->unspliced = d->workload->flags & WORKLOAD_UNSPLICED ? FALLBACK_WORKLOAD : c->unspliced;
	count_connection(d->id, service, OUTCOME_LOCAL);
	return REWRITE;
}

enum candidate { CANDIDATE_TAKEN, CANDIDATE_DENIED, CANDIDATE_UNFIT };

/* Whether d may be sent to c->local. */
INLINE enum candidate consider(struct dial *d, struct choice *c)
{
	struct access_key key = {.netns = c->local.netns, .workload = d->id, .address = c->local.address};
	enum access *access = bpf_map_lookup_elem(&accesses, &key);
	struct workload *w;
	struct port *p;

	if (!access)
		return CANDIDATE_UNFIT;
	if (*access == ACCESS_DENY)
		return CANDIDATE_DENIED;
	if (*access != ACCESS_DIRECT || is_v4(&c->local.address) != is_v4(&d->to))
		return CANDIDATE_UNFIT;
	/* The endpoint's workload itself has to listen there now; who listens
	 * is known by its cgroup or user, never by the address. */
	p = find_port(c->local.netns, &c->local.address);
	if (!p || !(p->flags & PORT_LEARNED) || p->workload != c->local.workload)
		return CANDIDATE_UNFIT;
	w = bpf_map_lookup_elem(&workloads, &c->local.workload);
	if (!w || w->flags & WORKLOAD_BYPASS)
		return CANDIDATE_UNFIT;
	if (w->flags & WORKLOAD_UNSPLICED)
		c->unspliced = FALLBACK_WORKLOAD;
	else if ((p->flags & (PORT_NONBLOCKING | PORT_BLOCKING)) != PORT_NONBLOCKING)
		c->unspliced = FALLBACK_BLOCKING;
	return CANDIDATE_TAKEN;
}

/* Chooses among the endpoints of this node: LEAVE when the proxy is to choose,
 * or to help. One at random and, should it be unfit, its neighbour: with more
 * the verifier would follow too many ways. What is denied at both is refused
 * here if there are no others. */
INLINE enum verdict judge_local(struct dial *d, __u32 service)
{
	struct locals *all = bpf_map_lookup_elem(&locals, &d->found);
	enum candidate c1, c2 = CANDIDATE_DENIED;
	struct choice c;
	__u32 at;

	if (!all || !all->count || all->count > MAX_LOCALS)
		return LEAVE;
	at = bpf_get_prandom_u32() % all->count;
	c.local = all->at[at & (MAX_LOCALS - 1)];
	c.unspliced = FALLBACK_NONE;
	c1 = consider(d, &c);
	if (c1 != CANDIDATE_TAKEN && all->count > 1) {
		at = at + 1 < all->count ? at + 1 : 0;
		c.local = all->at[at & (MAX_LOCALS - 1)];
		c2 = consider(d, &c);
	}
	if (c1 == CANDIDATE_TAKEN || (c2 == CANDIDATE_TAKEN && all->count > 1))
		return is_bound(d) ? LEAVE : to_local(d, service, &c);
	if (c1 == CANDIDATE_DENIED && c2 == CANDIDATE_DENIED && all->only && all->count <= 2)
		return refuse(d, EVENT_REFUSED, REASON_POLICY);
	return LEAVE;
}

INLINE enum verdict judge_tcp(struct dial *d)
{
	struct destination *to;
	enum verdict v;
	int unknown, has_listeners;

	to = find_destination(d, &unknown);
	if (!to) {
		if (is_loopback(&d->to)) {
			forget_capture(d);
			return LEAVE;
		}
		if (d->workload->flags & WORKLOAD_REGISTERED_ONLY)
			return refuse(d, EVENT_REFUSED, REASON_UNREGISTERED);
		return leave(d, OUTCOME_PASSTHROUGH);
	}
	if (unknown)
		return refuse(d, EVENT_REFUSED, REASON_UNKNOWN_PORT);
	has_listeners = bpf_map_lookup_elem(&namespaces, &d->netns) != 0;
	if (have_direct && to->flags & DESTINATION_LOCAL && has_listeners && !flows_are_full(d->node)) {
		v = judge_local(d, to->service);
		if (v != LEAVE)
			return v;
	}
	if (!proxy_serves(d, has_listeners)) {
		if (!(d->workload->flags & WORKLOAD_DOWN_DIRECT) || !to->direct.port)
			return refuse(d, EVENT_REFUSED, REASON_PROXY_DOWN);
		v = redirect(d, to->service, SOCKET_NAMED, &to->direct);
		if (v == REWRITE)
			count_connection(d->id, to->service, OUTCOME_DIRECT);
		return v;
	}
	if (!has_listeners)
		return refuse_without_listeners(d);
	if (flows_are_full(d->node))
		return refuse(d, EVENT_REFUSED, REASON_FLOWS_FULL);
	return to_proxy(d, to->service, SOCKET_NAMED | SOCKET_CAPTURED, d->node->outbound_port);
}

/* Fills in who is calling; 0 when it is nobody of ours. Ordered so that
 * everybody else gets out with as few lookups as possible. */
INLINE int is_ours(struct dial *d)
{
	d->node = this_node();
	if (!d->node)
		return 0;
	d->id = current_workload(d->node);
	if (!d->id)
		return 0;
	d->workload = bpf_map_lookup_elem(&workloads, &d->id);
	if (!d->workload || !d->ctx->sk)
		return 0;
	d->socket = bpf_sk_storage_get(&sockets, d->ctx->sk, 0, 0);
	if (d->socket && d->socket->flags & SOCKET_OWN)
		return 0;
	d->netns = bpf_get_netns_cookie(d->ctx);
	return 1;
}

INLINE enum verdict judge_connect(struct dial *d)
{
	__u32 protocol = d->ctx->protocol;
	int dns = d->to.port == DNS_SERVER_PORT;

	if (protocol != IPPROTO_TCP && !(protocol == IPPROTO_UDP && dns))
		return LEAVE;
	if (!is_ours(d))
		return LEAVE;
	if (d->workload->flags & WORKLOAD_BYPASS) {
		forget_capture(d);
		return LEAVE;
	}
	resolve_unspecified(&d->to);
	if (excluded(d->workload, d->id, OUT, d->to.port, &d->to))
		return leave(d, OUTCOME_EXCLUDED);
	if (dns && d->node->dns_port)
		return judge_dns(d);
	if (protocol != IPPROTO_TCP)
		return LEAVE;
	return judge_tcp(d);
}

/* Without bpf_set_retval a refusal would be EPERM, which applications take for
 * a misconfiguration; port 0 of loopback answers with a RST. A datagram socket
 * would get no answer from there. */
INLINE int refused_at_loopback(struct dial *d)
{
	if (have_set_retval || d->ctx->type != SOCK_STREAM)
		return 0;
	set_loopback(&d->to);
	d->to.port = 0;
	return 1;
}

SEC("cgroup/connect4")
int outbound4(struct bpf_sock_addr *ctx)
{
	struct dial d = {.ctx = ctx};
	enum verdict v;

	set_v4(&d.to, ctx->user_ip4);
	d.to.port = ntohs((__u16)ctx->user_port);
	v = judge_connect(&d);
	if (v == LEAVE)
		return 1;
	if (v == REFUSE && !refused_at_loopback(&d))
		return 0;
	ctx->user_ip4 = d.to.ip[3];
	ctx->user_port = htons(d.to.port);
	return 1;
}

SEC("cgroup/connect6")
int outbound6(struct bpf_sock_addr *ctx)
{
	struct dial d = {.ctx = ctx};
	enum verdict v;

	if (ctx->user_family != AF_INET6)
		return 1;
	d.to.ip[0] = ctx->user_ip6[0];
	d.to.ip[1] = ctx->user_ip6[1];
	d.to.ip[2] = ctx->user_ip6[2];
	d.to.ip[3] = ctx->user_ip6[3];
	d.to.port = ntohs((__u16)ctx->user_port);
	v = judge_connect(&d);
	if (v == LEAVE)
		return 1;
	if (v == REFUSE && !refused_at_loopback(&d))
		return 0;
	ctx->user_ip6[0] = d.to.ip[0];
	ctx->user_ip6[1] = d.to.ip[1];
	ctx->user_ip6[2] = d.to.ip[2];
	ctx->user_ip6[3] = d.to.ip[3];
	ctx->user_port = htons(d.to.port);
	return 1;
}
