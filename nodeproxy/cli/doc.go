// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: one file for each command. Commands that
// ask a running node do so over its admin socket; the others work on the
// configuration, the CA's directory or the kernel's state.
//
// It owns what people type and read, and the exit codes: 0 done, 1 failed, 2
// wrong usage or configuration. It must not know how a node works: that, and
// everything else a command touches, comes in through Surroundings.
package cli
