// SPDX-License-Identifier: Apache-2.0

// Package consul is the discovery source that follows a Consul agent: the
// services of this node are its workloads, their permitted and explicit
// upstreams the services of the mesh, and intentions its policies.
//
// The package owns what Consul's answers mean (chains, subsets, failover,
// intentions, virtual IPs) and how they are kept up to date within what an
// agent allows one client. It also keeps the node's own rows in the agent.
// It must not know the kernel, nor how connections are made; who listens on a
// port is asked of a function that its owner supplies.
//
// # Keeping up to date
//
// A blocking query holds a connection, and an agent allows 200 of them per
// client (limits.http_max_conns_per_client), so a thousand upstreams cannot
// have one each. A few queries watch broadly and say what changed: names of
// services, configuration entries by kind, intentions of the local services,
// checks that do not pass. Of what changed, the details are fetched. Targets
// up to a bound, explicit upstreams first, have a blocking query of their own
// all the same; while that is enough for all of them, checks are not watched.
//
// What the broad queries cannot name is a registered instance that comes or
// goes without its checks ever failing. A change of the catalog therefore has
// every target asked whether its index moved, at most for a small share of the
// time: all of them on one connection, one question after another, and once more
// by the ordinary way those that it did. The questions reach the views that the
// agent keeps (agent/submatview) and no server. A view may be late, or have nothing
// in it yet: a target whose answer is older than the change that is known of is
// asked for again, and what is known stays until the view has something to say.
package consul
