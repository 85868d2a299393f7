// SPDX-License-Identifier: Apache-2.0

// Package testnet makes hosts on this machine: each Host is a network
// namespace with addresses of its own, a cgroup2 subtree, a private bpffs and
// a private /etc/resolv.conf; a Container is the same, one hop behind a host.
// End-to-end tests, the demo and the benchmarks run in it.
//
// The package owns everything it creates and removes it in Close. What a
// crashed owner left behind is removed by the next New: every name carries the
// owner's pid and start time, so a leftover is told from a topology in use.
// It needs root, uses system calls and netlink only (no iproute2), and must
// know nothing of meshproxy itself.
//
// # What a host is made of
//
// A goroutine locked to its thread holds the namespaces: what has to happen
// inside (a socket, a new process) is a function run on that thread. Processes
// are started from it too, which is how they inherit the namespaces, and they
// die with it (PR_SET_PDEATHSIG), so that a killed owner leaves no process
// behind either.
package testnet
