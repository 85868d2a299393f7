// SPDX-License-Identifier: Apache-2.0

// Package identity gives the workloads of this node their leaves, knows whom
// the node trusts, and builds the TLS configurations of tunnels from both.
//
// It owns what a valid peer is: an X.509 SVID whose chain leads to a root of
// its own trust domain, within its lifetime, with exactly one SPIFFE ID
// (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md). It must
// not know policy (which valid peer may connect), connections, or where the
// providers in its subpackages get their leaves from.
//
// Session resumption is off on both sides: a resumed session would carry an
// identity past the rotation that was to end it, and ztunnel does not resume
// either.
//
// Private keys are wrapped in Key, which cannot be printed, logged or
// marshalled. What was read from a file is overwritten after parsing; the
// parsed key lives until the collector frees it, Go offers nothing better.
package identity
