// SPDX-License-Identifier: Apache-2.0

// Package balance chooses among the endpoints of a service.
//
// It owns what the node learns about endpoints by itself: connections in
// flight, connect failures, active health checks. That outlives snapshots. It
// must not know how connections are made; it is told how they went.
//
// The order of choice, for each pick:
//
//  1. Endpoints that the source says are unhealthy are never used.
//  2. Endpoints of a lower priority go before all of a higher one, which are
//     there for failover. Of one priority, the nearest group that has an
//     available endpoint is used: this node, this zone, this region,
//     everywhere. Available means: neither ejected nor failing its active
//     check nor draining.
//  3. If no group of any priority has one, endpoints that are draining but otherwise
//     available.
//  4. If there is none either, panic mode: all endpoints of rule 1, in the
//     same order, as if the node had learned nothing. Refusing a connection because
//     of our own guesses would make an outage out of a doubt.
//
// Within a group the service's policy decides: the less loaded of two random
// endpoints (Mitzenmacher, "The Power of Two Choices in Randomized Load
// Balancing"), round robin, or random; all of them by weight.
package balance
