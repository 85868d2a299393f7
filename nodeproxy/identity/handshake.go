// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Session is what a handshake has settled.
type Session struct {
	// Local is the identity that this side has shown.
	Local spiffeid.ID
	// Peer is the verified identity of the other side.
	Peer spiffeid.ID
	// PeerExpires is when Peer's certificate does.
	PeerExpires time.Time
}

// Handshake runs the handshake of a connection from ClientConfig or
// ServerConfig. It tells more than tls.Conn.HandshakeContext: which identity
// was chosen, and errors of this package where crypto/tls has its own texts.
func Handshake(ctx context.Context, conn *tls.Conn) (Session, error) {
	record := &record{}
	if err := conn.HandshakeContext(context.WithValue(ctx, recordKey{}, record)); err != nil {
		return Session{Local: record.local}, handshakeError(err, record)
	}
	state := conn.ConnectionState()
	peer, err := PeerIdentity(state)
	if err != nil {
		return Session{Local: record.local}, err
	}
	return Session{Local: record.local, Peer: peer, PeerExpires: PeerExpires(state)}, nil
}

func handshakeError(err error, r *record) error {
	if r.err != nil {
		return r.err
	}
	// The one error of crypto/tls that policy cares about and that has no
	// value of its own (handshake_server_tls13.go).
	if err.Error() == "tls: client didn't provide a certificate" {
		return ErrNoCertificate
	}
	return fmt.Errorf("handshake: %w", err)
}

// record carries what the callbacks of a tls.Config decide to Handshake.
type record struct {
	local spiffeid.ID
	err   error
}

type recordKey struct{}

// recordOf returns the record of the handshake; one that nobody reads when the
// handshake was not started by Handshake.
func recordOf(ctx context.Context) *record {
	if r, ok := ctx.Value(recordKey{}).(*record); ok {
		return r
	}
	return &record{}
}
