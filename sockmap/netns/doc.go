// SPDX-License-Identifier: Apache-2.0

// Package netns opens sockets and listeners inside network namespaces, and
// tells namespaces apart.
//
// A namespace belongs to a thread, and Go moves goroutines between threads.
// So code enters a namespace either through Do, which borrows a thread for it,
// or, in an event loop that has a thread of its own, through a Thread. A
// socket stays in the namespace in which it was made, whoever uses it.
//
// Entering a namespace needs CAP_SYS_ADMIN, in the caller's own user namespace
// and in the one that owns the network namespace; opening that of another
// user's process needs CAP_SYS_PTRACE.
//
// The package must not know of workloads, cgroups or programs.
package netns

import "errors"

// Own stands for the caller's namespace wherever a descriptor is expected.
const Own = -1

var (
	// ErrGone means that the process whose namespace was asked for has ended.
	ErrGone = errors.New("process is gone")
	// ErrNotNamespace means that a file is not a network namespace.
	ErrNotNamespace = errors.New("not a network namespace")
	// ErrNoCookie means that the kernel does not tell the cookie of a network
	// namespace: SO_NETNS_COOKIE came with Linux 5.14 (commit e8b9eab99232).
	ErrNoCookie = errors.New("kernel has no SO_NETNS_COOKIE, Linux 5.14 needed")
	// ErrHidden means that the namespaces of some processes could not be
	// read: CAP_SYS_PTRACE is missing, or a security module forbids it.
	ErrHidden = errors.New("some processes may not be looked at")
	// ErrExited means that the function passed to Do ended its goroutine
	// instead of returning.
	ErrExited = errors.New("function ended its goroutine")
)
