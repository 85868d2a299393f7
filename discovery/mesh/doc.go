// SPDX-License-Identifier: Apache-2.0

// Package mesh is the model that every discovery source produces and every
// consumer reads: services, endpoints, workloads and policies, gathered in an
// immutable Snapshot.
//
// The package owns the vocabulary and the indexes over it. It must not know
// where the data comes from (sources do), nor what is done with it (sockmap
// and nodeproxy do).
//
// All values reachable from a Snapshot are read-only once the snapshot has
// been published; they may be read from any goroutine without locks.
package mesh
