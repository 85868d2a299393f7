// SPDX-License-Identifier: Apache-2.0

// Package consul runs the real Consul for tests: an agent on free ports or on
// a host of testnet, with or without ACLs, and the sidecars that its users have
// today, Envoy and the builtin proxy.
//
// The binary is built from the nested module in build/, so that the product's
// go.mod stays small, and kept in the user's cache directory by version.
package consul
