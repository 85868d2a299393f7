// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// What a handshake can fail with, beside errors of the connection and of TLS
// itself. Those about the peer's certificate come as a *PeerError.
var (
	ErrUntrusted        = errors.New("certificate not trusted")
	ErrExpired          = errors.New("certificate expired")
	ErrNotYetValid      = errors.New("certificate not yet valid")
	ErrIdentityMismatch = errors.New("unexpected identity")
	ErrNoCertificate    = errors.New("no certificate from the client")

	ErrUnknownServerName = errors.New("no workload here has this server name")
	ErrNoServerName      = errors.New("client sent no server name and no default identity is configured")
	ErrNoProtocol        = errors.New("no application protocol negotiated")
	ErrNoLeaf            = errors.New("no leaf")
)

// PeerError says what is wrong with the certificate that a peer showed.
type PeerError struct {
	// Kind is ErrUntrusted, ErrExpired, ErrNotYetValid or
	// ErrIdentityMismatch.
	Kind error
	// Got is the identity that the certificate claims, zero when it has no
	// proper one. Only with ErrIdentityMismatch has it been verified.
	Got spiffeid.ID
	// Want are the identities that were accepted, for ErrIdentityMismatch.
	Want []spiffeid.ID
	// Bound is the NotAfter that has passed or the NotBefore that has not
	// come, at the time Now.
	Bound, Now time.Time
	// Err is the cause, if there is one beyond Kind.
	Err error
}

// Unwrap gives both the kind and the cause to errors.Is and errors.As.
func (e *PeerError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

func (e *PeerError) Error() string {
	who := ""
	if !e.Got.IsZero() {
		who = e.Got.String() + ": "
	}
	switch e.Kind {
	case ErrIdentityMismatch:
		return fmt.Sprintf("%v %s, want %s", e.Kind, e.Got, idList(e.Want))
	case ErrExpired:
		return fmt.Sprintf("%s%v at %s, %s ago: not renewed, or is a clock wrong?", who, e.Kind,
			e.Bound.UTC().Format(time.RFC3339), e.Now.Sub(e.Bound).Round(time.Second))
	case ErrNotYetValid:
		return fmt.Sprintf("%s%v before %s, %s from now: clock skew between this node and the CA?", who, e.Kind,
			e.Bound.UTC().Format(time.RFC3339), e.Bound.Sub(e.Now).Round(time.Second))
	}
	if e.Err == nil {
		return fmt.Sprintf("%s%v", who, e.Kind)
	}
	return fmt.Sprintf("%s%v: %s", who, e.Kind, clip(e.Err.Error()))
}

// clip bounds what a peer's certificate can write into a log line.
func clip(s string) string {
	const most = 300
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// idList prints a few of the identities.
func idList(ids []spiffeid.ID) string {
	const most = 3
	var b strings.Builder
	for i, id := range ids {
		if i == most {
			fmt.Fprintf(&b, " or %d more", len(ids)-most)
			break
		}
		if i > 0 {
			b.WriteString(" or ")
		}
		b.WriteString(id.String())
	}
	return b.String()
}

var reasons = []struct {
	err    error
	reason string
}{
	{ErrIdentityMismatch, "identity_mismatch"},
	{ErrExpired, "expired"},
	{ErrNotYetValid, "not_yet_valid"},
	{ErrUntrusted, "untrusted"},
	{ErrNoCertificate, "no_certificate"},
	{ErrUnknownServerName, "unknown_server_name"},
	{ErrNoServerName, "no_server_name"},
	{ErrNoProtocol, "no_protocol"},
	{ErrNoLeaf, "no_leaf"},
	{context.Canceled, "canceled"},
	{context.DeadlineExceeded, "timeout"},
}

// Reason names the cause of a failed handshake for a metric label: one of a
// fixed set, "handshake" when it is none of the others.
func Reason(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	var op *net.OpError
	if errors.As(err, &op) {
		if op.Op == "remote error" { // crypto/tls: an alert
			return "refused_by_peer"
		}
		if op.Timeout() {
			return "timeout"
		}
		return "connection"
	}
	return "handshake"
}
