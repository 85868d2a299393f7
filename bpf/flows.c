//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: carries what one end of a connection knows to the other end.
 *
 * A flow is on record from before the SYN leaves until the accepting side has
 * taken it: the proxy through sockmap.Flow, a workload's socket here. It must
 * outlive a client that closes at once, before it was accepted; such flows get
 * a date, and user space removes them when nobody came.
 */
#include "congestion.c"
#include "direct.c"
#include "hops.c"
#include "listeners.c"

INLINE void connecting(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct flow_key key = {};
	struct flow f = {};

	if (!tcp || !s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN | SOCKET_DIRECT)))
		return;
	client_key(ctx, tcp, &key);
	if (!(s->flags & SOCKET_OWN) || goes_by_loopback(tcp))
		without_congestion(ctx, tcp);
	if (s->flags & SOCKET_DIRECT) {
		dialling(ctx, s, &key);
		f.flags = direct_flags(s);
		f.endpoint = s->endpoint;
	} else if (s->flags & SOCKET_CAPTURED)
		f.flags = FLOW_CAPTURED | FLOW_NAMED;
	else if (s->flags & SOCKET_SOURCE)
		f.flags = FLOW_OWN | FLOW_NAMED;
	else if (filter_port(key.local.port))
		f.flags = FLOW_OWN;
	else
		return;
	f.cookie = bpf_get_socket_cookie(ctx);
	f.workload = s->workload;
	f.service = s->service;
	f.device = s->device;
	f.address = s->address;
	if (bpf_map_update_elem(&flows, &key, &f, BPF_ANY)) {
		struct node *n = this_node();

		/* This one is lost: the accepting side will find nothing and
		 * close it. connect(2) refuses the next ones for a while. */
		count(flows_full);
		if (n)
			n->flows_full = bpf_ktime_get_ns();
		return;
	}
	watch_state(ctx);
}

INLINE void connected(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);

	if (!tcp || !s)
		return;
	if (s->flags & SOCKET_DIRECT)
		connected_directly(ctx, sk, tcp, s);
	else
		connected_to_proxy(ctx, sk, tcp, s);
}

/*
 * A client is about to send something, or acknowledges. By its first message it is
 * known whether it blocks, as those do that connect without blocking for the sake
 * of a limit of time (hiredis, libmysql). It has not begun to read then, unless
 * somebody else does it, so that the connection can become what it would have
 * been: TCP. tcp_current_mss asks before the message is queued.
 */
INLINE void sending(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	int fresh;

	if (!tcp || !s)
		return;
	fresh = is_fresh(ctx, tcp);
	if (fresh && ctx->args[0] != BPF_WRITE_HDR_TCP_CURRENT_MSS)
		return; /* the handshake's */
	unwatch(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	if (!is_blocking(&tcp->inet_conn.icsk_inet.sk))
		return;
	unwatch(ctx, BPF_SOCK_OPS_RTT_CB_FLAG);
	if (fresh && !is_awaited(&tcp->inet_conn.icsk_inet.sk) &&
	    (s->flags & SOCKET_DIRECT ? leave_splice(ctx, sk) : leave_hop(ctx, sk)))
		learn(s->workload, s->service, blocks);
	else
		learn(s->workload, s->service, waits);
}

INLINE void closed(struct bpf_sock_ops *ctx, struct bpf_sock *sk, __u32 before)
{
	struct socket *s = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct flow_key key = {};
	struct flow *f;

	settle_end(sk, before);
	end_hop(sk);
	if (!s)
		former_closed(ctx);
	if (!tcp || !s || !(s->flags & (SOCKET_CAPTURED | SOCKET_OWN | SOCKET_DIRECT)))
		return;
	client_key(ctx, tcp, &key);
	if (s->flags & SOCKET_DIRECT) {
		key.netns = s->netns;
		direct_closed(ctx, s, before);
	}
	if (before == TCP_SYN_SENT || s->flags & (SOCKET_OWN | SOCKET_DIRECT)) {
		bpf_map_delete_elem(&flows, &key);
		return;
	}
	f = bpf_map_lookup_elem(&flows, &key);
	if (f)
		f->closed_at = bpf_ktime_get_ns();
}

/* The proxy is about to get a workload's connection; it takes the flow. */
INLINE void captured(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct node *n = this_node();
	struct flow_key key = {};
	struct tcp_sock *tcp;
	struct flow *f;

	if (!n || n->outbound_port != ctx->local_port)
		return;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	without_congestion(ctx, tcp);
	if (!n->hopping)
		return;
	key.netns = netns_cookie(tcp);
	remote_address(ctx, &key.client);
	local_address(ctx, &key.local);
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && f->flags & FLOW_CAPTURED)
		accepted_hop(ctx, sk, tcp, f->cookie, 1);
}

/* A workload's server is about to get a connection that the proxy made, or a
 * workload of this node. */
INLINE void established(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct flow_key key = {};
	struct tcp_sock *tcp;
	struct socket *s;
	struct flow *f;

	if (!filter_port(ctx->local_port)) {
		captured(ctx, sk);
		return;
	}
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return;
	key.netns = netns_cookie(tcp);
	remote_address(ctx, &key.client);
	local_address(ctx, &key.local);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f || !(f->flags & (FLOW_OWN | FLOW_DIRECT)))
		return;
	without_congestion(ctx, tcp);
	if (f->flags & FLOW_DIRECT) {
		accepting(ctx, sk, tcp, f);
	} else if (may_hop(0)) {
		watch_reader(ctx); /* also when this one is not spliced */
		accepted_hop(ctx, sk, tcp, f->cookie, 0);
	}
	if (f->flags & FLOW_NAMED) {
		s = bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (s) {
			s->flags = SOCKET_NAMED;
			s->address = f->address;
		}
	}
	bpf_map_delete_elem(&flows, &key);
}

SEC("sockops")
int flow(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk;

	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		sk = ctx->sk;
		if (sk)
			connecting(ctx, sk);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[0] != TCP_ESTABLISHED && ctx->args[1] != TCP_CLOSE)
			break;
		sk = ctx->sk;
		if (!sk)
			break;
		if (ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_RTT_CB_FLAG)
			watch_read(ctx, sk);
		if (ctx->args[1] != TCP_CLOSE)
			break;
		if (ctx->args[0] == TCP_LISTEN)
			unlistening(ctx, sk);
		else
			closed(ctx, sk, ctx->args[0]);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		if (sk)
			connected(ctx, sk);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		sk = ctx->sk;
		if (sk)
			established(ctx, sk);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		sk = ctx->sk;
		if (sk)
			watch_read(ctx, sk);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		sk = ctx->sk;
		if (sk)
			sending(ctx, sk);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		sk = ctx->sk;
		if (sk)
			listening(ctx, sk);
		break;
	}
	/* 1 leaves the reply of other programs on this hook as it is. */
	return 1;
}
