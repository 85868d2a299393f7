//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The programs that exist once per node, as one object, so that they share
 * their maps; inbound.c is loaded once per network namespace. */
#include "enroll.c"
#include "guard.c"
#include "outbound.c"
#include "dns.c" /* judges as outbound.c does */
#include "names.c"
#include "flows.c"

/* User space reads it from the ring buffer, which has no types: this gives it a
 * place in the object's BTF. */
const volatile struct event event_layout;
const volatile struct direct_event direct_event_layout;
const volatile struct splice splice_layout;
const volatile struct hop_end hop_end_layout;
const volatile struct hop_query hop_query_layout;
const volatile enum hop_sender hop_sender_layout;
