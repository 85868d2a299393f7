// SPDX-License-Identifier: Apache-2.0

// Package diskcache keeps the last snapshot and the assigned virtual IPs in a
// directory, so that a node restarts into the mesh it knew although its
// backends are down.
//
// A file is replaced atomically: whatever happens, there is the old one or
// the new one. One that is damaged, of another version or too large is ignored
// with a log line; the node then starts as if it were new. There are no keys in
// it: the model has none.
package diskcache
