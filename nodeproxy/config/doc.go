// SPDX-License-Identifier: Apache-2.0

// Package config reads the configuration of a node: a YAML file, MESHPROXY_*
// variables and flags, of which the later ones win.
//
// All keys stand in one table (keys.go) with their default, their meaning and
// what they accept; reading, checking, `config show` and the reference follow
// from it. A configuration is checked as a whole, and everything that is wrong
// with it is reported at once, with the place where it stands.
//
// The sections of the mesh (services, workloads, policies, ...) may stand in
// the same file. They belong to the static source; this package only knows
// their names. It must not know what the node does with its configuration.
package config
