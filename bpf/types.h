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
#define MAX_LOCALS 16 /* a power of two */

/* An address and port. IPv4 is kept in its IPv4-mapped form, so that a socket
 * of either family names a destination in the same way. */
struct address {
	__u32 ip[4]; /* network order */
	__u16 port;  /* host order */
	__u16 pad;
};

enum splicing {
	SPLICING_OFF = 0,  /* what is spliced turns to TCP */
	SPLICING_TEST = 1, /* only the self-test's own connections */
	SPLICING_ON = 2,
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
	__u8 reports;   /* somebody wants to hear of direct connections that close */
	__u32 last_id; /* of workloads and services, never given twice */
	/* levels[n] is set when a cgroup of depth n is enrolled; bytes, because
	 * a bit could not be set without losing another CPU's. */
	__u8 levels[MAX_LEVELS];
	enum splicing splicing;
	/* Counts changes of the workloads' switches, so that a message need not
	 * look them up. */
	__u32 splice_generation;
	enum splicing hopping; /* the same of hops between application and proxy */
	__u32 hop_leaves;      /* counts hops that leave the map, as splice_generation does */
	/* Counts what the proxy has to look into: a hop that should leave, and an
	 * application that went from redirecting to TCP with something unread. */
	__u32 hops_wanted;
	__u32 hops_mixed;
	__u32 hops_ever; /* there may be some */
	__u32 pad;
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
	WORKLOAD_UNSPLICED = 1 << 11, /* its connections stay TCP */
};

struct workload {
	enum workload_flags flags;
};

struct destination_key {
	__u32 workload; /* 0: any */
	struct address address; /* port 0: every other port of a virtual IP */
};

enum destination_flags {
	DESTINATION_LOCAL = 1 << 0, /* has an entry in locals, under the same key */
	DESTINATION_ANY_PORT = 1 << 1, /* the row with port 0 stands for every port */
};

struct destination {
	__u32 service;
	enum destination_flags flags;
	struct address direct; /* where to go without the proxy; port 0: nowhere */
};

/* The endpoints of a destination that are workloads of this node, healthy, and
 * need nothing of the proxy but policy. */
struct local {
	__u64 netns; /* where it listens */
	__u32 workload;
	struct address address;
};

struct locals {
	__u32 count;
	__u32 only; /* the destination has no other endpoints */
	struct local at[MAX_LOCALS];
};

/* Whether a workload may connect to an endpoint of this node. No entry is
 * ACCESS_PROXY. */
struct access_key {
	__u64 netns;
	__u32 workload;
	struct address address;
};

enum access {
	ACCESS_PROXY = 0, /* the proxy decides */
	ACCESS_DIRECT,
	ACCESS_DENY,
};

/* A connection that goes to its endpoint without the proxy, by the cookie of
 * the client's socket. */
enum direct_flags {
	DIRECT_ADDRESSED = 1 << 0,   /* local and remote are known */
	DIRECT_ESTABLISHED = 1 << 1,
	DIRECT_IPV6 = 1 << 2, /* the client's socket, whatever its address */
	DIRECT_SPLICED = 1 << 3,
	DIRECT_LEFT = 1 << 4, /* was to be spliced, but its client blocks: see sending */
};

enum side { SIDE_CLIENT = 0, SIDE_SERVER = 1 };

struct direct {
	__u64 netns;          /* of the client */
	__u64 endpoint_netns;
	__u64 opened; /* CLOCK_MONOTONIC, ns */
	__u32 workload;
	__u32 service;
	__u32 endpoint; /* workload */
	enum direct_flags flags;
	struct address dialled;
	struct address local;
	struct address remote; /* the endpoint */
	__u32 pad;
	/* Where in the kernel the spliced sockets are, by side: to look at, not
	 * to hold. What is sent goes by the map, which knows who is alive. */
	__u64 sockets[2];
	__u64 sent; /* by the client, as far as it was added up */
	__u64 received;
	__u32 closed; /* how many of the ends that the programs follow */
	__u32 answered; /* the server has sent something, if spliced */
};

/* An end of a spliced connection. The client's cookie and not the addresses:
 * these come again while a socket that had them before is still in the map. */
struct splice_key {
	__u64 client;
	enum side side;
	__u32 pad;
};

/* Why an end sends by TCP. It redirects again when that has passed, and the
 * other end has read what came by TCP. */
enum fallback {
	FALLBACK_NONE = 0,
	FALLBACK_PEER,     /* the other end is not accepted yet, not spliced, or gone */
	FALLBACK_MEMORY,   /* the receiver does not keep up */
	FALLBACK_PAUSED,   /* splicing was turned off */
	FALLBACK_WORKLOAD, /* it was turned off for one of the workloads */
	FALLBACK_BLOCKING, /* an end waits inside of read(2), or may */
	FALLBACK_FULL,     /* no room among the spliced sockets */
	FALLBACK_CLOSING,  /* no state to send in: TCP knows the error */
	FALLBACK_OPTIONS,  /* an end uses what only TCP can do: kTLS, zero copy */
	FALLBACK_READER,   /* an end was not seen reading yet, or uses splice(2) */
	FALLBACKS,
};

struct splice {
	struct splice_key peer;
	__u64 to;         /* the other end's socket, once it is known */
	__u64 bytes;      /* sent and not yet counted */
	__u64 redirected; /* of these, by the map */
	__u64 messages;   /* redirected */
	enum fallback fallback; /* why the last message went by TCP */
	__u32 by_tcp;     /* some did, and the other end may not have read all */
	__u32 generation;
	__u32 switched_off; /* as of that generation */
	__u32 counted;      /* TCP's write_seq when bytes was last added to */
	__u32 gone;         /* bytes redirected, up to GONE_MOST */
	__u32 workload; /* the client's */
	__u32 service;
	__u32 endpoint; /* workload */
	__u32 own;      /* the self-test's */
	__u32 began;    /* it has sent something by TCP */
	__u32 pad;
};

/* A connection between an application and the proxy that is spliced, by the
 * cookie of the client's socket, which is the application's or the proxy's. */
struct hop {
	__u64 sockets[2]; /* as in struct direct */
	__u32 workload;   /* the application's */
	__u32 own;        /* the self-test's */
	__u32 leaving;    /* nothing is redirected any more */
	__u32 wanted;     /* that it leaves */
	__u32 answered;   /* the side that was dialled has sent something */
	__u32 service;    /* of a captured connection */
};

/* An end of one. */
struct hop_end {
	struct splice_key peer;
	__u64 to; /* the other end's socket, once it is known */
	__u64 messages; /* redirected */
	enum fallback fallback; /* why the last message went by TCP */
	__u32 by_tcp;     /* some did, and the other end may not have read all */
	__u32 generation; /* of the workloads' switches, and of hops that leave */
	__u32 leaves;
	__u32 workload;
	__u32 service; /* of a captured connection */
	__u32 began;   /* it has sent something by TCP */
	__u8 switched_off; /* as of these generations */
	__u8 leaving;
	__u8 own;
	__u8 proxy; /* this end is the proxy's */
};

enum hop_sender { HOP_APPLICATION = 0, HOP_PROXY = 1, HOP_SENDERS };

/* By who sends; connections by who dialled. */
struct hop_traffic {
	__u64 spliced;
	__u64 left;
	__u64 messages;
	__u64 redirected; /* bytes */
	__u64 fallbacks[FALLBACKS]; /* of ends */
};

/* What user space asks about a hop, and is told. */
struct hop_query {
	__u64 client; /* cookie */
	enum side application; /* which end is the application's */
	__u32 leave; /* nothing is to be redirected from now on */
	__u32 found;
	__u32 wanted; /* it should leave */
	__u32 unread; /* by the application, of what was redirected to it */
	__u32 pending; /* for the proxy: unread, or still to come */
};

struct traffic_key {
	__u32 workload; /* the client's */
	__u32 service;
};

/* How a workload reads what it gets. A byte each: a bit could not be set without
 * losing another CPU's. */
struct habit {
	/* As a client of the service: from sockets that do not block; from such that
	 * do, and show it by their first message; or not before they read. */
	__u8 reads;
	__u8 blocks;
	__u8 waits;
	/* Of service 0: with splice(2), from whatever connection. */
	__u8 splices;
};

struct traffic {
	__u64 opened;
	__u64 closed;
	__u64 spliced;
	__u64 sent; /* by the client */
	__u64 received;
	__u64 redirected; /* of both */
	__u64 fallbacks[FALLBACKS]; /* of ends, two to a connection */
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
	FLOW_DIRECT = 1 << 3,   /* from workload to workload */
	FLOW_TEST = 1 << 4,   /* the self-test's */
};

struct flow {
	__u64 cookie;    /* of the client's socket */
	__u64 closed_at; /* when the client closed it, unless 0 */
	__u32 workload;
	__u32 service;
	__u32 device; /* the client was bound to it */
	enum flow_flags flags;
	struct address address; /* original destination, or true source */
	__u32 endpoint;         /* workload, of a direct flow */
};

enum socket_flags {
	SOCKET_OWN = 1 << 0,      /* the proxy's own */
	SOCKET_NAMED = 1 << 1,    /* getpeername and accept show address */
	SOCKET_CAPTURED = 1 << 2, /* publishes a flow to the outbound listener */
	SOCKET_DNS = 1 << 3,      /* talks to the DNS proxy instead of address */
	SOCKET_SOURCE = 1 << 4,   /* own: the server shall see address as client */
	SOCKET_DIRECT = 1 << 5,   /* goes to a workload of this node */
	SOCKET_HOP = 1 << 6,      /* own: who writes to it knows of hops */
};

struct socket {
	__u64 netns; /* of the endpoint, when direct */
	enum socket_flags flags;
	__u32 workload;
	__u32 service;
	__u32 device;
	struct address address;
	__u32 endpoint; /* workload, when direct */
	enum fallback unspliced; /* why not, when direct */
	__u32 pad;
};

struct port_key {
	__u64 netns;
	struct address address; /* :: any of both families, ::ffff:0.0.0.0 of one */
	__u32 pad;
};

enum port_flags {
	PORT_DECLARED = 1 << 0, /* by the configuration */
	PORT_LEARNED = 1 << 1,  /* somebody listens on it */
	/* What was seen of the sockets that it accepted: O_NONBLOCK or not. */
	PORT_NONBLOCKING = 1 << 2,
	PORT_BLOCKING = 1 << 3,
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
	OUTCOME_LOCAL, /* to a workload of this node, without the proxy */
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
	REASON_POLICY,          /* policy denies it */
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
	__u64 directs_full;
};

enum event_kind {
	EVENT_REFUSED = 1,
	EVENT_NETNS_SEEN,
	EVENT_ENROLLED,
	EVENT_GONE,
	EVENT_CLOSED, /* struct direct_event */
	EVENT_OPENED, /* the same */
	EVENT_SPLICES, /* a workload reads with splice(2) */
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

/* A direct connection that is, or was. */
struct direct_event {
	enum event_kind kind;
	__u32 pad;
	__u64 cookie;
	__u64 now; /* CLOCK_MONOTONIC, ns */
	struct direct conn;
};
