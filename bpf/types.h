/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The structures that the programs share with each other and with package
 * sockmap. All of them are free of hidden padding: they are map keys and are
 * compared byte by byte. Changing one means a new layout version (see
 * sockmap/pins.go).
 */
#pragma once

#include "kernel.h"

#define MAX_LEVELS 32 /* depth of cgroups */
#define RULE_PATH 256 /* LPM_DATA_SIZE_MAX */
#define UNIT_NAME 256 /* NAME_MAX + 1 */
#define NAME_LENGTH 320

/* An address and port. IPv4 is kept in its IPv4-mapped form, so that a socket
 * of either family names a destination in the same way. */
struct address {
	__u32 ip[4]; /* network order */
	__u16 port;  /* host order */
	__u16 pad;
};

/* What the programs know about the node: one element, mapped into the memory
 * of the proxy, so that a heartbeat is a store. */
struct node {
	__u64 heartbeat;         /* CLOCK_MONOTONIC, ns */
	__u64 heartbeat_timeout; /* ns */
	__u64 flows_full;        /* when a flow last found no room */
	__u16 outbound_port;
	__u16 plain_port;
	__u16 hbone_port;
	__u16 mtls_port;
	__u16 dns_port;
	__u8 has_users; /* some workload is selected by uid */
	__u8 pad;
	__u32 last_id; /* of workloads and services, never given twice */
	/* levels[n] is set when a cgroup of depth n is enrolled; bytes, because
	 * a bit could not be set without losing another CPU's. */
	__u8 levels[MAX_LEVELS];
};

enum workload_flags {
	WORKLOAD_BYPASS = 1 << 0,
	WORKLOAD_REGISTERED_ONLY = 1 << 1,
	WORKLOAD_DOWN_DIRECT = 1 << 2, /* go direct while the proxy is away */
	WORKLOAD_UPSTREAMS = 1 << 3,   /* has destinations of its own */
	WORKLOAD_OUT_PORTS = 1 << 4,   /* has exclusions of that kind */
	WORKLOAD_OUT_CIDRS = 1 << 5,
	WORKLOAD_IN_PORTS = 1 << 6,
	WORKLOAD_IN_CIDRS = 1 << 7,
	WORKLOAD_STRICT = 1 << 8, /* inbound: neither of the two is off */
	WORKLOAD_PERMISSIVE = 1 << 9,
	WORKLOAD_LOCAL_DENY = 1 << 10,
};

struct workload {
	enum workload_flags flags;
};

struct destination_key {
	__u32 workload; /* 0: any */
	struct address address; /* port 0: every other port of a virtual IP */
};

enum destination_flags {
	DESTINATION_ANY_PORT = 1 << 1, /* the row with port 0 stands for every port */
};

struct destination {
	__u32 service;
	enum destination_flags flags;
	struct address direct; /* where to go without the proxy; port 0: nowhere */
};

enum direction { OUT = 0, IN = 1 };

struct port_exclusion {
	__u32 workload;
	__u16 port;
	__u8 direction;
	__u8 pad;
};

struct cidr_exclusion {
	__u32 prefixlen; /* of everything that follows */
	__u32 workload;
	enum direction direction;
	__u32 ip[4];
};

/* A connection from its SYN until the accepting side has taken note of it. */
struct flow_key {
	__u64 netns;
	struct address client;
	struct address local; /* as the accepting side sees itself */
};

enum flow_flags {
	FLOW_CAPTURED = 1 << 0, /* a workload's, for the outbound listener */
	FLOW_OWN = 1 << 1,      /* the proxy's, for a workload of this node */
	FLOW_NAMED = 1 << 2,    /* address is the true source */
};

struct flow {
	__u64 cookie;    /* of the client's socket */
	__u64 closed_at; /* when the client closed it, unless 0 */
	__u32 workload;
	__u32 service;
	__u32 device; /* the client was bound to it */
	enum flow_flags flags;
	struct address address; /* original destination, or true source */
	__u32 pad;
};

enum socket_flags {
	SOCKET_OWN = 1 << 0,      /* the proxy's own */
	SOCKET_NAMED = 1 << 1,    /* getpeername and accept show address */
	SOCKET_CAPTURED = 1 << 2, /* publishes a flow to the outbound listener */
	SOCKET_DNS = 1 << 3,      /* talks to the DNS proxy instead of address */
	SOCKET_SOURCE = 1 << 4,   /* own: the server shall see address as client */
};

struct socket {
	enum socket_flags flags;
	__u32 workload;
	__u32 service;
	__u32 device;
	struct address address;
};

struct port_key {
	__u64 netns;
	struct address address; /* :: any of both families, ::ffff:0.0.0.0 of one */
	__u32 pad;
};

enum port_flags {
	PORT_DECLARED = 1 << 0, /* by the configuration */
	PORT_LEARNED = 1 << 1,  /* somebody listens on it */
};

struct port {
	__u32 workload; /* 0: somebody else listens here */
	enum port_flags flags;
};

/* One byte for each of 64 ports: whether anybody protects it, anywhere. */
struct port_filter {
	__u8 set[64];
};

struct rule_key {
	__u32 prefixlen;
	__u8 path[RULE_PATH];
};

/* A cgroup path that leads to a workload, or (0) to nothing in particular but
 * below the root of the capture. */
struct rule {
	__u32 workload;
	__u32 level; /* the depth of the cgroups that it names; those below inherit */
};

/* "workload/" or "service/", then "namespace/name". */
struct name {
	__u8 bytes[NAME_LENGTH];
};

struct unit_key {
	__u8 name[UNIT_NAME];
};

enum outcome {
	OUTCOME_CAPTURED = 1,
	OUTCOME_DNS,
	OUTCOME_DIRECT,
	OUTCOME_PASSTHROUGH,
	OUTCOME_EXCLUDED,
	OUTCOME_STEERED,
};

enum reason {
	REASON_PROXY_DOWN = 1,  /* the heartbeat is stale */
	REASON_NO_LISTENERS,    /* the namespace has none of the proxy's */
	REASON_UNKNOWN_PORT,    /* a virtual IP without that port */
	REASON_UNREGISTERED,    /* egress registered-only */
	REASON_FLOWS_FULL,      /* no room for another flow */
	REASON_NO_MEMORY,       /* no storage for the socket */
	REASON_DEVICE,          /* bound to a device, and not to be unbound */
	REASON_PORT_TAKEN,      /* bind to a port of the proxy */
	REASON_PLAINTEXT,       /* inbound strict, from elsewhere */
	REASON_LOCAL,           /* inbound.local: deny */
};

struct rejection_key {
	__u32 workload;
	enum reason reason;
};

struct connection_key {
	__u32 workload;
	__u32 service;
	enum outcome outcome;
};

/* What should stay at zero. */
struct counters {
	__u64 flows_full;
	__u64 events_lost;
	__u64 enroll_failed;
	__u64 ports_full;
};

enum event_kind {
	EVENT_REFUSED = 1,
	EVENT_NETNS_SEEN,
	EVENT_ENROLLED,
	EVENT_GONE,
};

struct event {
	enum event_kind kind;
	enum reason reason;
	__u32 workload;
	__u32 pid; /* 0: unknown to this kernel's hook */
	__u64 cgroup;
	__u64 netns;
	struct address address;
	__u32 pad;
};
