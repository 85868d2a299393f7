// SPDX-License-Identifier: Apache-2.0

// Package leafcache keeps leaves, private keys included, on disk over a reboot,
// for a node that must serve while its CA is away. Who wants that says so in the
// configuration; otherwise private keys stay in memory.
//
// Two files lie in the state directory. One is the cache: what a provider exports,
// sealed with AES-256-GCM. The other is that cipher's key, which only this machine
// can read: a credential of systemd-creds(1), sealed with the machine's secret,
// with its TPM, or with both.
//
// Unsealing a credential takes root, which a node is not. So the service manager
// has root unseal the key before each start, and hand it over in the run directory,
// which is memory and ends with the service. From then on the node seals what it
// gets by itself. What the cache holds is the provider's business: the package must
// not know it.
//
// Where anything is missing, damaged or of another machine there is no cache, and
// the reason is an error for the log; nothing is ever written unsealed.
package leafcache
