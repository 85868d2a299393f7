//go:build ignore
/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * fentry/tcp_splice_read: who reads from connections with splice(2), as Go's
 * io.Copy from one to another does. It finds nothing on a spliced one, and waits
 * for ever. Runs for nobody else.
 *
 * An object of its own, because a kernel may lack what it needs.
 */
#include "habits.h"

INLINE void note(__u32 workload)
{
	struct event *e;

	if (!workload || !learn(workload, 0, splices))
		return;
	e = new_event(EVENT_SPLICES, 0, workload);
	if (!e)
		return;
	e->cgroup = bpf_get_current_cgroup_id();
	e->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_ringbuf_submit(e, 0);
}

SEC("fentry/tcp_splice_read")
int reads(__u64 *ctx)
{
	struct socket___kernel *sock = (struct socket___kernel *)ctx[0];
	struct node *n = this_node();
	struct socket *s;

	if (!n)
		return 0;
	note(current_workload(n));
	/* Whose connection it is: it may have been given to another process. */
	s = bpf_sk_storage_get(&sockets, sock->sk, 0, 0);
	if (s && s->flags & (SOCKET_DIRECT | SOCKET_CAPTURED))
		note(s->workload);
	return 0;
}
