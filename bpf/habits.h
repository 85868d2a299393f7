/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * How workloads read. Who waits inside of read(2), or uses splice(2), must not be
 * spliced, and is seen to do so only when it reads: the first connection of each
 * client to a service, as the first one to a listener, is TCP and is watched.
 */
#pragma once

#include "meshproxy.h"

INLINE __u32 habits_of(__u32 workload, __u32 service)
{
	struct traffic_key key = {workload, service};
	enum habit_flags *habits_are = bpf_map_lookup_elem(&habits, &key);

	return habits_are ? *habits_are : 0;
}

/* Whether this is news. */
INLINE int learn(__u32 workload, __u32 service, __u32 habit)
{
	struct traffic_key key = {workload, service};
	enum habit_flags *have = bpf_map_lookup_elem(&habits, &key), first = habit;

	if (!have)
		return !bpf_map_update_elem(&habits, &key, &first, BPF_NOEXIST);
	if (*have & habit)
		return 0;
	*have |= habit;
	return 1;
}

/* Whether anything of what came has been read. */
INLINE int has_read(const struct tcp_sock *tcp)
{
	return tcp->bytes_received > (__u32)(tcp->rcv_nxt - tcp->copied_seq);
}
