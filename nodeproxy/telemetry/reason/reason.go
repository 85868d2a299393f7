// SPDX-License-Identifier: Apache-2.0

// Package reason names why a connection was refused or ended early. The names
// are stable: metrics, logs, the admin interface and the command line use
// them, and operators write alerts on them.
//
// It is a leaf package so that everything on a connection's way can say why
// it stopped there. It must not know how a reason is counted or shown.
package reason

import (
	"errors"
	"fmt"
)

// Reason says why a connection was refused or ended early. The zero value
// means that nothing went wrong.
type Reason uint8

// The reasons. New ones go to the end of their group; names never change
// their meaning.
const (
	// None: the connection ended as its peers wanted.
	None Reason = iota

	// Where from, where to.

	NoFlow             // the outbound listener got a connection that capture has no record of
	NoWorkload         // the process or the inbound address belongs to no workload
	UnknownPort        // a virtual IP dialled on a port that its service doesn't have
	NoHealthyEndpoint  // the service has no endpoint that may be tried
	EgressUnregistered // the destination is outside the mesh and the workload may only leave it for registered ones
	NamespaceUnready   // the workload's network namespace has no listeners yet

	// Who.

	PolicyDenied     // a policy, or the default, denies it
	PolicyChanged    // it was legal when it opened, and a new policy denies it
	PlaintextRefused // plaintext to a workload that is strict
	LocalDenied      // a process that is no workload, while inboundLocal is deny
	IdentityMismatch // the peer proved another identity than the one expected
	PeerUntrusted    // the peer's certificate doesn't lead to the trust bundle
	PeerMissing      // the peer showed no certificate
	TLSExpired       // a certificate is expired or not yet valid
	TLSHandshake     // the handshake broke for any other reason
	HandshakeTimeout // the handshake took too long
	NoLeaf           // the workload's own leaf isn't there (yet)

	// The way there.

	ConnectRefused     // nothing listens there
	ConnectTimeout     // no answer in time
	ConnectUnreachable // no route, or the network says so
	TunnelReset        // the tunnel, or the stream in it, was reset
	TunnelUnresponsive // the tunnel's peer stopped answering PING
	TunnelRefused      // the other node answered 400 or anything else that is neither success nor named here
	PeerDenied         // the other node answered 401 or 403: its policy denies it
	PeerUnavailable    // the other node answered 503: the application doesn't answer there
	ProtocolError      // the peer broke the tunnel's protocol

	// Limits.

	LimitWorkload   // the workload has as many connections as it may
	LimitFD         // the process is out of descriptors
	LimitHandshakes // too many handshakes are under way
	LimitStreams    // the peer opened more streams than it may
	LimitFlood      // the peer sent more control frames or resets than any honest one
	LimitFlows      // the flow map is full
	LimitMemory     // the workload's or the node's buffers are used up

	// Life cycle.

	ProxyDown   // the proxy is away and the workload's onProxyDown is refuse
	Draining    // the node finishes what is open and accepts nothing new
	IdleTimeout // nothing moved for as long as the configuration allows
	Reset       // one of the two applications reset it
	Internal    // a bug, recovered; the log has the stack

	count
)

var names = [count]struct{ name, text string }{
	None:               {"none", "nothing went wrong"},
	NoFlow:             {"no_flow", "capture has no record of this connection"},
	NoWorkload:         {"no_workload", "the process or address belongs to no workload"},
	UnknownPort:        {"unknown_port", "the service has no such port"},
	NoHealthyEndpoint:  {"no_healthy_endpoint", "the service has no healthy endpoint"},
	EgressUnregistered: {"egress_unregistered", "the destination is not registered in the mesh and egress is registered-only"},
	NamespaceUnready:   {"namespace_unready", "the network namespace has no listeners yet"},
	PolicyDenied:       {"policy_denied", "policy denies it"},
	PolicyChanged:      {"policy_changed", "a new policy denies what was open"},
	PlaintextRefused:   {"plaintext_refused", "plaintext to a strict workload"},
	LocalDenied:        {"local_denied", "a local process that is no workload, while inboundLocal is deny"},
	IdentityMismatch:   {"identity_mismatch", "the peer has another identity than the one expected"},
	PeerUntrusted:      {"peer_untrusted", "the peer's certificate does not lead to the trust bundle"},
	PeerMissing:        {"peer_missing", "the peer showed no certificate"},
	TLSExpired:         {"tls_expired", "a certificate is expired or not yet valid"},
	TLSHandshake:       {"tls_handshake", "the TLS handshake broke"},
	HandshakeTimeout:   {"handshake_timeout", "the TLS handshake took too long"},
	NoLeaf:             {"no_leaf", "the workload has no leaf"},
	ConnectRefused:     {"connect_refused", "nothing listens at the endpoint"},
	ConnectTimeout:     {"connect_timeout", "the endpoint did not answer in time"},
	ConnectUnreachable: {"connect_unreachable", "the network has no way to the endpoint"},
	TunnelReset:        {"tunnel_reset", "the tunnel was reset"},
	TunnelUnresponsive: {"tunnel_unresponsive", "the other node stopped answering"},
	TunnelRefused:      {"tunnel_refused", "the other node refused the stream"},
	PeerDenied:         {"peer_denied", "the other node's policy denies it"},
	PeerUnavailable:    {"peer_unavailable", "the application does not answer on the other node"},
	ProtocolError:      {"protocol_error", "the peer broke the tunnel's protocol"},
	LimitWorkload:      {"limit_workload", "the workload has as many connections as it may"},
	LimitFD:            {"limit_fd", "no file descriptors are left"},
	LimitHandshakes:    {"limit_handshakes", "too many handshakes are under way"},
	LimitStreams:       {"limit_streams", "the peer opened more streams than it may"},
	LimitFlood:         {"limit_flood", "the peer flooded the tunnel with control frames"},
	LimitFlows:         {"limit_flows", "the flow map is full"},
	LimitMemory:        {"limit_memory", "no buffer memory is left"},
	ProxyDown:          {"proxy_down", "the proxy is away"},
	Draining:           {"draining", "the node is draining"},
	IdleTimeout:        {"idle_timeout", "nothing moved for too long"},
	Reset:              {"reset", "one end reset it"},
	Internal:           {"internal", "an internal error"},
}

// ErrUnknown: a text that names no reason.
var ErrUnknown = errors.New("unknown reason")

// All returns every reason but None, in the order of their values.
func All() []Reason {
	all := make([]Reason, 0, count-1)
	for r := None + 1; r < count; r++ {
		all = append(all, r)
	}
	return all
}

// String returns the stable name, such as "policy_denied".
func (r Reason) String() string {
	if r >= count {
		return "unknown"
	}
	return names[r].name
}

// Text returns a short sentence for people.
func (r Reason) Text() string {
	if r >= count {
		return "unknown"
	}
	return names[r].text
}

// Parse returns the reason with the given name.
func Parse(name string) (Reason, error) {
	for r := range names {
		if names[r].name == name {
			return Reason(r), nil
		}
	}
	return None, fmt.Errorf("%w %q", ErrUnknown, name)
}

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Reason) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}
