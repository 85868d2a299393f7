// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Peer is what a handshake proved about the two ends of a connection.
type Peer struct {
	Identity      spiffeid.ID // the other end's
	LocalIdentity spiffeid.ID // the one that this end showed
	Remote, Local netip.AddrPort
	// ServerName is the SNI: sent by a client, received by a server. A server
	// name in the form of an IP address never occurs in TLS.
	ServerName string
	// Expires is when the first of the two leaves does.
	Expires time.Time
}

// ErrNoIdentity: a certificate has no SPIFFE ID, or more than one.
var ErrNoIdentity = errors.New("certificate has no SPIFFE identity")

// identityOf returns the one URI of a leaf (X.509-SVID, section 2).
func identityOf(cert *x509.Certificate) (spiffeid.ID, error) {
	if len(cert.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("%w: %d URIs", ErrNoIdentity, len(cert.URIs))
	}
	id, err := spiffeid.FromURI(cert.URIs[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrNoIdentity, err)
	}
	return id, nil
}
