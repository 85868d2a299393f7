// SPDX-License-Identifier: Apache-2.0

// Package telemetry counts and records what a node's connections do: metrics
// for Prometheus, the access log, and the list of what is open.
//
// A Connection is accounted for by the shard of the loop that carries it, so
// that what is counted per read is an uncontended atomic addition and nothing
// is allocated. Whatever is asked rarely (the pool, the snapshot, capture's
// counters) is read through functions at the time of a scrape.
//
// The package owns the names of metrics and log fields. It must not know how
// connections are carried, nor how its figures are served.
package telemetry
