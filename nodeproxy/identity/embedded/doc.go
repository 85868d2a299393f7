// SPDX-License-Identifier: Apache-2.0

// Package embedded is a certificate authority in a directory, for one machine
// or a lab: every node that shares the directory, or has a copy, issues leaves
// for its own workloads. Who can read the directory can be any workload; where
// that is too much, the other providers are the answer.
//
//	ca.json           which roots there are and from when each of them signs
//	root-<fp>.crt     a root, named after its fingerprint
//	root-<fp>.key     its key, until it signs no more
//
// ca.json is replaced atomically and is the only truth: a file that it does not
// name is left over from a crash. Writers hold a flock on the directory.
//
// A rotation happens in time, not by command to every node. The new root is
// trusted as soon as a node sees it, and signs from a moment that lies far
// enough ahead (RotateOptions.Propagation) for all nodes to have seen it. From
// then on the nodes renew their leaves; the old root remains trusted for as
// long as a leaf of it may live. At no time does a node meet a leaf whose root
// it does not trust.
package embedded
