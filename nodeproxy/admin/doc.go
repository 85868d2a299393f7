// SPDX-License-Identifier: Apache-2.0

// Package admin serves what operators ask a running node: a JSON interface and
// pprof on a unix socket for root and the node's own user, metrics and
// readiness on TCP ports of their own.
//
// Three listeners because three audiences may reach them: whoever can reach
// the metrics port must not change anything, and a probe must get its answer
// while a scrape or a profile is slow.
//
// The package owns the routes, their limits and who may use them; the values
// are package api's. It must not know how a node does what it is asked: that
// is behind Node.
package admin
