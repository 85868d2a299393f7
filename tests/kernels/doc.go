// SPDX-License-Identifier: Apache-2.0

// Package kernels runs the product on Debian's kernels in virtual machines: what
// check says there, the programs' own tests, and nodes that capture, carry and
// refuse connections.
//
// All kernels: make test-kernels. One: KERNEL=5.10 go test ./tests/kernels
package kernels
