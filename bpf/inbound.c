//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_lookup, loaded once per network namespace: what may reach a workload's
 * port. The context does not tell the namespace, hence the constant.
 */
#include "meshproxy.h"

const volatile __u64 netns;
const volatile __u8 have_ingress_ifindex; /* 5.17 */
const volatile __u8 have_former;          /* other programs were in force before */

/*
 * The flows of those, as long as connections may come that they have decided
 * about; values are as large as theirs (sockmap/switch.go).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, 1);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__type(key, struct flow_key);
		__type(value, struct flow);
	});
} former_flows SEC(".maps");

INLINE void addresses(struct bpf_sk_lookup *ctx, struct address *remote, struct address *local)
{
	if (ctx->family == AF_INET) {
		set_v4(remote, ctx_read(ctx->remote_ip4));
		set_v4(local, ctx_read(ctx->local_ip4));
	} else {
		remote->ip[0] = ctx_read(ctx->remote_ip6[0]);
		remote->ip[1] = ctx_read(ctx->remote_ip6[1]);
		remote->ip[2] = ctx_read(ctx->remote_ip6[2]);
		remote->ip[3] = ctx_read(ctx->remote_ip6[3]);
		local->ip[0] = ctx_read(ctx->local_ip6[0]);
		local->ip[1] = ctx_read(ctx->local_ip6[1]);
		local->ip[2] = ctx_read(ctx->local_ip6[2]);
		local->ip[3] = ctx_read(ctx->local_ip6[3]);
	}
	remote->port = ntohs(ctx->remote_port);
	local->port = ctx->local_port;
}

/* What a flow says is another layout's, but no others than those of is_mesh lead
 * to a port that is guarded. */
INLINE int was_mesh(const struct flow_key *key)
{
	__u32 first = 0;
	void *former;

	if (!have_former)
		return 0;
	former = bpf_map_lookup_elem(&former_flows, &first);
	return former && bpf_map_lookup_elem(former, key);
}

/* Made by the proxy, which has judged the connection at its far end, or by a
 * workload of this node, judged in connect(2). */
INLINE int is_mesh(const struct address *remote, const struct address *local)
{
	struct flow_key key = {.netns = netns, .client = *remote, .local = *local};
	struct flow *f = bpf_map_lookup_elem(&flows, &key);

	return f ? f->flags & (FLOW_OWN | FLOW_DIRECT) : was_mesh(&key);
}

/* From this namespace. A connection to an address of another interface of ours
 * comes over loopback, but seems to arrive on that interface (inet_iif takes
 * it from the route), so addresses count too: packets from elsewhere with a
 * source of our own are martians, which the kernel drops, or in IPv6 never see
 * an answer. */
INLINE int is_local(struct bpf_sk_lookup *ctx, const struct address *remote, const struct address *local)
{
	if (have_ingress_ifindex && ctx->ingress_ifindex == LOOPBACK_IFINDEX)
		return 1;
	if (is_loopback(remote))
		return 1;
	return remote->ip[0] == local->ip[0] && remote->ip[1] == local->ip[1] &&
	       remote->ip[2] == local->ip[2] && remote->ip[3] == local->ip[3];
}

INLINE int reject(__u32 workload, __u32 reason, const struct address *remote)
{
	struct event *e;

	count_rejection(workload, reason);
	e = new_event(EVENT_REFUSED, reason, workload);
	if (e) {
		e->netns = netns;
		e->address = *remote;
		bpf_ringbuf_submit(e, 0);
	}
	return SK_DROP; /* answered with a RST */
}

INLINE int steer(struct bpf_sk_lookup *ctx, __u32 workload)
{
	__u64 key = netns;
	struct bpf_sock *listener = bpf_map_lookup_elem(&inbound_listeners, &key);
	long err;

	if (!listener)
		return 0;
	err = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	if (err)
		return 0;
	count_connection(workload, 0, OUTCOME_STEERED);
	return 1;
}

SEC("sk_lookup")
int inbound(struct bpf_sk_lookup *ctx)
{
	struct address remote = {}, local = {};
	struct workload *w;
	struct node *n;
	struct port *p;
	__u32 id;

	if (ctx->protocol != IPPROTO_TCP || !filter_port(ctx->local_port))
		return SK_PASS;
	addresses(ctx, &remote, &local);
	p = find_port(netns, &local);
	if (!p || !p->workload)
		return SK_PASS;
	id = p->workload;
	w = bpf_map_lookup_elem(&workloads, &id);
	if (!w || w->flags & WORKLOAD_BYPASS || !(w->flags & (WORKLOAD_STRICT | WORKLOAD_PERMISSIVE)))
		return SK_PASS;
	if (excluded(w, id, IN, local.port, &remote) || is_mesh(&remote, &local))
		return SK_PASS;
	if (is_local(ctx, &remote, &local))
		return w->flags & WORKLOAD_LOCAL_DENY ? reject(id, REASON_LOCAL, &remote) : SK_PASS;
	if (w->flags & WORKLOAD_STRICT)
		return reject(id, REASON_PLAINTEXT, &remote);
	n = this_node();
	if (n && proxy_alive(n) && steer(ctx, id))
		return SK_PASS;
	return w->flags & WORKLOAD_DOWN_DIRECT ? SK_PASS : reject(id, REASON_PROXY_DOWN, &remote);
}
