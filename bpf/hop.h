/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What hops.c and hop.c have in common. */
#pragma once

#include "meshproxy.h"

/* Per CPU; a softirq can come between load and store even so. */
#define count_hop(way, field, n)                                               \
	({                                                                     \
		__u32 way_ = (way);                                            \
		struct hop_traffic *t_ = bpf_map_lookup_elem(&hop_traffic, &way_); \
		if (t_)                                                        \
			__sync_fetch_and_add(&t_->field, n);                   \
	})

INLINE void count_hop_fallback(__u32 way, __u32 why)
{
	struct hop_traffic *t = bpf_map_lookup_elem(&hop_traffic, &way);

	if (t && why < FALLBACKS)
		__sync_fetch_and_add(&t->fallbacks[why], 1);
}

INLINE int is_unspliced(__u32 workload)
{
	struct workload *w = bpf_map_lookup_elem(&workloads, &workload);

	return w && w->flags & (WORKLOAD_UNSPLICED | WORKLOAD_BYPASS);
}
