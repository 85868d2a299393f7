// SPDX-License-Identifier: Apache-2.0

// Package consulagent reaches the Consul agent of this node: where it is, with
// which token and certificates, and what its refusals mean.
//
// The package owns the connections to the agent and bounds their number. It
// must not know what is asked.
package consulagent
