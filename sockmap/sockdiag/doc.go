// SPDX-License-Identifier: Apache-2.0

// Package sockdiag asks the kernel, by NETLINK_INET_DIAG, which TCP sockets a
// network namespace has: who listens where and in which cgroup, which
// connections are open. It also closes connections of other processes.
//
// It speaks the protocol itself, over the transport of vishvananda/netlink,
// because that library's own calls neither filter in the kernel nor read the
// cgroup and the IPV6_V6ONLY option, nor destroy IPv6 sockets.
//
// The package must not know of workloads, policy or programs.
package sockdiag

import "errors"

var (
	// ErrGone means that there is no such connection (any more).
	ErrGone = errors.New("connection is gone")
	// ErrNeedsCookie means that a connection was to be closed of which only
	// the addresses are known.
	ErrNeedsCookie = errors.New("socket cookie is not known")
	// ErrNoDestroy means that the kernel can't close other processes'
	// connections: it was built without CONFIG_INET_DIAG_DESTROY, or is older
	// than Linux 4.5.
	ErrNoDestroy = errors.New("kernel was built without CONFIG_INET_DIAG_DESTROY")
)
