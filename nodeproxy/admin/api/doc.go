// SPDX-License-Identifier: Apache-2.0

// Package api is what the admin interface says and is asked, as plain values
// with their JSON names: the contract between a running node and the programs
// that talk to it.
//
// It must not know where the values come from, nor how they are shown. Fields
// are only ever added.
package api
