/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The part of the kernel that the programs touch: context structures as
 * <linux/bpf.h> defines them (stable ABI), and kernel structures reduced to the
 * fields that are read, relocated at load time (CO-RE). Written by hand so that
 * the objects do not depend on the headers of the machine that builds them.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;

enum {
	AF_UNSPEC = 0,
	AF_INET = 2,
	AF_INET6 = 10,
	SOCK_STREAM = 1,
	SOCK_DGRAM = 2,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	SOL_TCP = IPPROTO_TCP,
	TCP_CONGESTION = 13,
	SOL_SOCKET = 1,
	SO_BINDTODEVICE = 25,
	SO_BINDTOIFINDEX = 62,
	ECONNREFUSED = 111,
	O_NONBLOCK = 04000,
	LOOPBACK_IFINDEX = 1, /* in every network namespace */
};

enum { /* include/net/tcp_states.h */
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_CLOSING = 11,
	TCP_LISTEN = 10,
};

enum { /* map types, map flags and helper flags of <linux/bpf.h> */
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_SOCKHASH = 18,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,

	BPF_F_NO_PREALLOC = 1 << 0,
	BPF_F_MMAPABLE = 1 << 10,

	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_SK_STORAGE_GET_F_CREATE = 1,
	BPF_F_CURRENT_NETNS = -1,
	BPF_F_INGRESS = 1,
};

enum {
	BPF_SOCK_OPS_TCP_CONNECT_CB = 3,
	BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB = 4,
	BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = 5,
	BPF_SOCK_OPS_STATE_CB = 10,
	BPF_SOCK_OPS_TCP_LISTEN_CB = 11,
	BPF_SOCK_OPS_RTT_CB = 12,
	BPF_SOCK_OPS_HDR_OPT_LEN_CB = 14,
	BPF_SOCK_OPS_STATE_CB_FLAG = 1 << 2,
	BPF_SOCK_OPS_RTT_CB_FLAG = 1 << 3,
	BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG = 1 << 6,

	BPF_WRITE_HDR_TCP_CURRENT_MSS = 1,
};

enum { SK_DROP = 0, SK_PASS = 1 };

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port;
	__u16 dst_port;
	__u16 : 16;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
};

struct sk_msg_md {
	union {
		void *data;
		__u64 : 64;
	} __attribute__((aligned(8)));
	union {
		void *data_end;
		__u64 : 64;
	} __attribute__((aligned(8)));
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 size;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

/* The IPv4 member of bpf_sock_tuple; all in network order. */
struct bpf_sock_tuple4 {
	__u32 saddr;
	__u32 daddr;
	__u16 sport;
	__u16 dport;
};

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;    /* network order */
	__u32 user_ip6[4]; /* network order */
	__u32 user_port;   /* network order, 16 bits */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

struct bpf_sock_ops {
	__u32 op;
	__u32 args[4];
	__u32 family;
	__u32 remote_ip4;    /* network order */
	__u32 local_ip4;     /* network order */
	__u32 remote_ip6[4]; /* network order */
	__u32 local_ip6[4];  /* network order */
	__u32 remote_port;   /* network order, 32 bits */
	__u32 local_port;    /* host order */
	__u32 is_fullsock;
	__u32 snd_cwnd;
	__u32 srtt_us;
	__u32 bpf_sock_ops_cb_flags;
	__u32 state;
	__u32 rtt_min;
	__u32 snd_ssthresh;
	__u32 rcv_nxt;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 mss_cache;
	__u32 ecn_flags;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u32 packets_out;
	__u32 retrans_out;
	__u32 total_retrans;
	__u32 segs_in;
	__u32 data_segs_in;
	__u32 segs_out;
	__u32 data_segs_out;
	__u32 lost_out;
	__u32 sacked_out;
	__u32 sk_txhash;
	__u64 bytes_received;
	__u64 bytes_acked;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

struct bpf_sk_lookup {
	union {
		struct bpf_sock *sk;
		__u64 cookie;
	};
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;    /* network order */
	__u32 remote_ip6[4]; /* network order */
	__u16 remote_port;   /* network order */
	__u16 : 16;
	__u32 local_ip4;    /* network order */
	__u32 local_ip6[4]; /* network order */
	__u32 local_port;   /* host order */
	__u32 ingress_ifindex; /* since 5.17 */
};

struct bpf_raw_tracepoint_args {
	__u64 args[2];
};

#define CO_RE __attribute__((preserve_access_index))

struct kernfs_node {
	const char *name;
	__u64 id;
} CO_RE;

struct cgroup_root {
	int hierarchy_id;
} CO_RE;

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} CO_RE;

struct cgroup {
	struct cgroup_subsys_state self;
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} CO_RE;

struct sock_cgroup_data {
	struct cgroup *cgroup; /* a tagged word before 5.16 */
} CO_RE;

struct tcp_congestion_ops;

struct netns_ipv4 {
	const struct tcp_congestion_ops *tcp_congestion_control;
	int sysctl_tcp_rmem[3];
} CO_RE;

struct net {
	__u64 net_cookie;
	struct netns_ipv4 ipv4;
} CO_RE;

/* Before 5.14 (3d368ab87cf6 "net: initialize net->net_cookie at netns setup")
 * the cookie was an atomic. */
typedef struct {
	__s64 counter;
} atomic64_t;

struct net___before_5_14 {
	atomic64_t net_cookie;
} CO_RE;

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	possible_net_t skc_net;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
} CO_RE;

typedef struct {
	int counter;
} atomic_t;

struct list_head {
	struct list_head *next;
} CO_RE;

struct wait_queue_head {
	struct list_head head;
} CO_RE;

struct socket_wq {
	struct wait_queue_head wait;
} CO_RE;

struct file {
	unsigned int f_flags;
} CO_RE;

struct socket___kernel {
	struct file *file;
	struct sock *sk;
} CO_RE;

enum sock_flags { SOCK_ZEROCOPY = 28 }; /* relocated */

/* What a socket in a map of sockets has. */
struct sk_psock {
	struct list_head ingress_msg;
} CO_RE;

struct net_device {
	int ifindex;
} CO_RE;

struct dst_entry {
	struct net_device *dev;
} CO_RE;

typedef struct {
	int owned;
} CO_RE socket_lock_t;

enum { SOCK_RCVBUF_LOCK = 2 }; /* in sk_userlocks: SO_RCVBUF was set */

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	struct dst_entry *sk_dst_cache;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	int sk_rcvbuf;
	__u8 sk_userlocks : 4;
	void *sk_user_data;
	struct socket_wq *sk_wq;
	struct socket___kernel *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
} CO_RE;

struct sk_msg {
	struct sock *sk_redir;
	struct sock *sk;
} CO_RE;

struct inet_sock {
	struct sock sk;
} CO_RE;

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const struct tcp_congestion_ops *icsk_ca_ops;
	const void *icsk_ulp_ops;
} CO_RE;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_received;
	__u32 write_seq;
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u32 rcv_wup;
	__u32 rcv_wnd;
} CO_RE;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define __ksym __attribute__((section(".ksyms")))
#define INLINE static inline __attribute__((always_inline))

#define ntohs(x) ((__u16)(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap16(x) : (x)))
#define htons(x) ntohs(x)
#define ntohl(x) ((__u32)(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? __builtin_bswap32(x) : (x)))
#define htonl(x) ntohl(x)

/* BPF_FIELD_EXISTS of libbpf's bpf_core_read.h */
#define field_exists(field) __builtin_preserve_field_info(field, 2)
/* BPF_CORE_READ_BITFIELD of it, of a field that lies in one byte. */
#define read_bits(p, field)                                                                   \
	((__u64)((const __u8 *)(p))[__builtin_preserve_field_info((p)->field, 0)]             \
	 << __builtin_preserve_field_info((p)->field, 4) >> __builtin_preserve_field_info((p)->field, 5))
/* bpf_core_enum_value of libbpf's bpf_core_read.h */
#define enum_value(type, value) __builtin_preserve_enum_value(*(typeof(type) *)value, 1)
/* Reads a field of a kernel structure by its relocated offset. */
#define read_field(dst, field) \
	bpf_probe_read_kernel(&(dst), sizeof(dst), __builtin_preserve_access_index(&(field)))

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static __u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static __u64 (*bpf_get_current_uid_gid)(void) = (void *)15;
static __u64 (*bpf_get_socket_cookie)(void *ctx) = (void *)46;
static __u32 (*bpf_get_prandom_u32)(void) = (void *)7;
static long (*bpf_setsockopt)(void *ctx, int level, int option, void *value, int len) = (void *)49;
static long (*bpf_sock_ops_cb_flags_set)(struct bpf_sock_ops *ctx, int flags) = (void *)59;
static long (*bpf_sock_hash_update)(struct bpf_sock_ops *ctx, void *map, void *key, __u64 flags) = (void *)70;
static long (*bpf_msg_redirect_hash)(struct sk_msg_md *msg, void *map, void *key, __u64 flags) = (void *)71;
static __u64 (*bpf_get_current_cgroup_id)(void) = (void *)80;
static struct bpf_sock *(*bpf_sk_lookup_tcp)(void *ctx, void *tuple, __u32 size, __u64 netns, __u64 flags) = (void *)84;
static long (*bpf_sk_release)(void *sk) = (void *)86;
static void *(*bpf_sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static long (*bpf_probe_read_kernel)(void *dst, __u32 size, const void *src) = (void *)113;
static long (*bpf_probe_read_kernel_str)(void *dst, __u32 size, const void *src) = (void *)115;
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)122;
static __u64 (*bpf_get_current_ancestor_cgroup_id)(int level) = (void *)123;
static long (*bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)124;
static void *(*bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*bpf_ringbuf_discard)(void *data, __u64 flags) = (void *)133;
static void (*bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static struct tcp_sock *(*bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static long (*bpf_loop)(__u32 iterations, void *body, void *ctx, __u64 flags) = (void *)181;
static int (*bpf_set_retval)(int retval) = (void *)187;
static void *(*bpf_skc_to_mptcp_sock)(void *sk) = (void *)196;
