// SPDX-License-Identifier: Apache-2.0

// Package discovery turns what the sources say into one view of the mesh.
//
// A Source delivers complete views of its backend; the Merger combines them by
// precedence, gives virtual IPs to services that have none, and publishes
// immutable snapshots to a Store, which readers load without locks. A source
// that fails leaves its last view in force.
//
// The package knows neither kernel nor proxy, nor any particular backend:
// those live in packages below it.
package discovery
