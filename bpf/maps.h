/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map, and who writes it. */
#pragma once

#include "types.h"

#define MAP(name, kind, entries, key_type, value_type, flags) \
	struct {                                              \
		__uint(type, kind);                           \
		__uint(max_entries, entries);                 \
		__uint(map_flags, flags);                     \
		__type(key, key_type);                        \
		__type(value, value_type);                    \
	} name SEC(".maps")

/* Written by user space. */
MAP(names, BPF_MAP_TYPE_HASH, 65536, struct name, __u32, BPF_F_NO_PREALLOC);
MAP(workloads, BPF_MAP_TYPE_HASH, 16384, __u32, struct workload, BPF_F_NO_PREALLOC);
MAP(users, BPF_MAP_TYPE_HASH, 4096, __u32, __u32, BPF_F_NO_PREALLOC);
MAP(rules, BPF_MAP_TYPE_LPM_TRIE, 32768, struct rule_key, struct rule, BPF_F_NO_PREALLOC);
MAP(units, BPF_MAP_TYPE_HASH, 16384, struct unit_key, struct rule, BPF_F_NO_PREALLOC);
MAP(destinations, BPF_MAP_TYPE_HASH, 1 << 20, struct destination_key, struct destination, BPF_F_NO_PREALLOC);
MAP(locals, BPF_MAP_TYPE_HASH, 65536, struct destination_key, struct locals, BPF_F_NO_PREALLOC);
MAP(accesses, BPF_MAP_TYPE_HASH, 1 << 18, struct access_key, enum access, BPF_F_NO_PREALLOC);
MAP(port_exclusions, BPF_MAP_TYPE_HASH, 65536, struct port_exclusion, __u8, BPF_F_NO_PREALLOC);
MAP(cidr_exclusions, BPF_MAP_TYPE_LPM_TRIE, 65536, struct cidr_exclusion, __u8, BPF_F_NO_PREALLOC);
/* Ports of the proxy beside those in struct node, for TCP. */
MAP(own_ports, BPF_MAP_TYPE_HASH, 4096, __u16, __u8, BPF_F_NO_PREALLOC);
MAP(namespaces, BPF_MAP_TYPE_HASH, 16384, __u64, __u32, BPF_F_NO_PREALLOC);
MAP(inbound_listeners, BPF_MAP_TYPE_SOCKHASH, 16384, __u64, __u64, 0);

/* Written by both. */
MAP(node, BPF_MAP_TYPE_ARRAY, 1, __u32, struct node, BPF_F_MMAPABLE);
MAP(cgroups, BPF_MAP_TYPE_HASH, 65536, __u64, __u32, BPF_F_NO_PREALLOC);
MAP(ports, BPF_MAP_TYPE_HASH, 65536, struct port_key, struct port, BPF_F_NO_PREALLOC);
MAP(port_filter, BPF_MAP_TYPE_ARRAY, 1024, __u32, struct port_filter, BPF_F_MMAPABLE);
/* The size is the node's configuration. */
MAP(flows, BPF_MAP_TYPE_HASH, 65536, struct flow_key, struct flow, BPF_F_NO_PREALLOC);
MAP(sockets, BPF_MAP_TYPE_SK_STORAGE, 0, int, struct socket, BPF_F_NO_PREALLOC);

/* Written by the programs. */
MAP(directs, BPF_MAP_TYPE_HASH, 65536, __u64, struct direct, BPF_F_NO_PREALLOC);
MAP(spliced, BPF_MAP_TYPE_SOCKHASH, 65536, struct splice_key, __u64, 0);
MAP(splices, BPF_MAP_TYPE_SK_STORAGE, 0, int, struct splice, BPF_F_NO_PREALLOC);
MAP(hops, BPF_MAP_TYPE_HASH, 65536, __u64, struct hop, BPF_F_NO_PREALLOC);
/* The proxy's ends, and the applications', which have the queue of splice.c. */
MAP(hopping, BPF_MAP_TYPE_SOCKHASH, 65536, struct splice_key, __u64, 0);
MAP(hopping_apps, BPF_MAP_TYPE_SOCKHASH, 65536, struct splice_key, __u64, 0);
MAP(hop_ends, BPF_MAP_TYPE_SK_STORAGE, 0, int, struct hop_end, BPF_F_NO_PREALLOC);
MAP(hop_traffic, BPF_MAP_TYPE_PERCPU_ARRAY, 2, __u32, struct hop_traffic, 0);
MAP(traffic, BPF_MAP_TYPE_PERCPU_HASH, 65536, struct traffic_key, struct traffic, BPF_F_NO_PREALLOC);
/* Of a workload as a client of a service, or (service 0) altogether. */
MAP(habits, BPF_MAP_TYPE_HASH, 65536, struct traffic_key, struct habit, BPF_F_NO_PREALLOC);
MAP(connections, BPF_MAP_TYPE_PERCPU_HASH, 65536, struct connection_key, __u64, BPF_F_NO_PREALLOC);
MAP(rejections, BPF_MAP_TYPE_PERCPU_HASH, 65536, struct rejection_key, __u64, BPF_F_NO_PREALLOC);
MAP(counters, BPF_MAP_TYPE_PERCPU_ARRAY, 1, __u32, struct counters, 0);
MAP(namespaces_seen, BPF_MAP_TYPE_LRU_HASH, 1024, __u64, __u64, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");
