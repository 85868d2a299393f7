// SPDX-License-Identifier: Apache-2.0

// Package files takes leaves and roots from files that somebody else renews:
// cert-manager, a Kubernetes secret, spiffe-helper, an operator's script.
//
// It believes nothing about how they are written. A pair of certificate and key
// is used only when both belong together, the identity is the one expected, and
// the chain leads to a root of the bundle now; until then, and after every
// mistake, the last good leaf stays in use for as long as it is valid.
package files
