// SPDX-License-Identifier: Apache-2.0

package api

import "time"

// Setting is a key of the configuration as it is in force.
type Setting struct {
	Key string `json:"key"`
	// Value is what YAML would hold; secrets are replaced.
	Value any `json:"value"`
	// Origin is where it was set: "default", a file, a variable or a flag.
	Origin string `json:"origin"`
}

// Config is the configuration in force.
type Config struct {
	File     string    `json:"file"`
	LoadedAt time.Time `json:"loadedAt"`
	Settings []Setting `json:"settings"`
}

// CA is what the node trusts, and its leaves.
type CA struct {
	Provider    string `json:"provider"`
	TrustDomain string `json:"trustDomain,omitempty"`
	Roots       []Root `json:"roots"`
	Leaves      []Leaf `json:"leaves,omitempty"`
	// Problems are those that the provider lives with now.
	Problems []string `json:"problems,omitempty"`
}

// Root is a root of the trust bundle.
type Root struct {
	TrustDomain string    `json:"trustDomain"`
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate, in hex
	Subject     string    `json:"subject"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	// State is "signing", "next" or "retiring" where the node is the CA.
	State string `json:"state,omitempty"`
	// SignsFrom and TrustedUntil bound a root that takes over, or goes.
	SignsFrom    time.Time `json:"signsFrom,omitzero"`
	TrustedUntil time.Time `json:"trustedUntil,omitzero"`
}

// Leaf is a leaf in use.
type Leaf struct {
	Identity  string    `json:"identity"`
	Workload  string    `json:"workload,omitempty"`
	Serial    string    `json:"serial"`
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Bypass takes a workload out of the mesh, or back into it.
type Bypass struct {
	Workload string `json:"workload"`
	Bypass   bool   `json:"bypass"`
}

// SpliceControl turns splicing off, or back on where it is safe.
type SpliceControl struct {
	Pause bool `json:"pause"`
}

// Reload is what a reload did.
type Reload struct {
	// Changed are the keys that changed and are in force now.
	Changed []string `json:"changed"`
	// RestartNeeded are the keys that changed and take effect after a
	// restart.
	RestartNeeded []string `json:"restartNeeded,omitempty"`
	// Upgrade is set when the node gave way to a new executable, which has
	// read the configuration instead.
	Upgrade *Upgrade `json:"upgrade,omitempty"`
}

// Upgrade says which process serves now.
type Upgrade struct {
	PID        int    `json:"pid"`
	Version    string `json:"version"`
	Before     string `json:"before"` // the version of the one that drains
	Generation int    `json:"generation"`
}

// LogLevel is the level of the node's log.
type LogLevel struct {
	Level string `json:"level"` // debug, info, warn or error
}

// Drain says how a drain is going.
type Drain struct {
	Active int `json:"active"` // connections that are still open
}

// Kind says what sort of error the answer is.
type Kind string

// The kinds of errors.
const (
	KindInvalid     Kind = "invalid"   // the question makes no sense
	KindNotFound    Kind = "not_found" // no such workload or service
	KindConflict    Kind = "conflict"  // not in this state
	KindForbidden   Kind = "forbidden"
	KindUnsupported Kind = "unsupported"
	KindInternal    Kind = "internal"
)

// Error is the answer when something is wrong. A Node returns one to choose
// its kind.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }
