//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: connections that stay within the node have no congestion to control.
 *
 * A system whose default is BBR, for the sake of what leaves it, pays for that
 * on each of them: BBR paces, with a timer and small bursts, at a rate that it
 * measures, and both ends are busy with that. Measured on such a system: a third
 * of the processor time of a bulk stream through two proxies. Reno is in every
 * kernel, does next to nothing per acknowledgement, and on loopback loses
 * nothing, so that its window only grows.
 *
 * A socket whose algorithm somebody has chosen keeps it.
 */
#include "meshproxy.h"

INLINE void without_congestion(struct bpf_sock_ops *ctx, struct tcp_sock *tcp)
{
	struct net *net = tcp->inet_conn.icsk_inet.sk.__sk_common.skc_net.net;
	char reno[] = "reno";

	if (net && tcp->inet_conn.icsk_ca_ops == net->ipv4.tcp_congestion_control)
		bpf_setsockopt(ctx, SOL_TCP, TCP_CONGESTION, reno, sizeof(reno));
}

/* Whether what a socket sends goes over the loopback device. */
INLINE int goes_by_loopback(struct tcp_sock *tcp)
{
	struct dst_entry *dst = tcp->inet_conn.icsk_inet.sk.sk_dst_cache;
	struct net_device *dev = dst ? dst->dev : 0;

	return dev && dev->ifindex == LOOPBACK_IFINDEX;
}
