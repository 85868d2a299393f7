// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// What a peer may make us verify. Real chains are a leaf and one or two
// intermediates of less than 2 KiB each.
const (
	maxChain       = 4
	maxCertificate = 16 << 10
)

// Verify checks a peer's chain, leaf first, at the time now, and returns the
// identity that it proves. The error is a *PeerError.
func Verify(chain []*x509.Certificate, bundle *Bundle, now time.Time) (spiffeid.ID, error) {
	if err := checkLimits(chain); err != nil {
		return spiffeid.ID{}, &PeerError{Kind: ErrUntrusted, Err: err}
	}
	sum := digest(chain)
	if id, ok := bundle.proofs.find(sum, now); ok {
		return id, nil
	}
	id, err := leafID(chain[0])
	if err != nil {
		return spiffeid.ID{}, &PeerError{Kind: ErrUntrusted, Err: err}
	}
	_, ways, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, peerError(id, err, now)
	}
	bundle.proofs.keep(sum, id, ways[0])
	return id, nil
}

func checkLimits(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("empty certificate chain")
	}
	if len(chain) > maxChain {
		return fmt.Errorf("chain of %d certificates, at most %d", len(chain), maxChain)
	}
	for _, c := range chain {
		if len(c.Raw) > maxCertificate {
			return fmt.Errorf("certificate of %d bytes, at most %d", len(c.Raw), maxCertificate)
		}
	}
	return nil
}

// leafID reads the identity of a leaf. Unlike a signing certificate, a leaf
// must have a path (X509-SVID, section 4.1).
func leafID(c *x509.Certificate) (spiffeid.ID, error) {
	id, err := x509svid.IDFromCert(c)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("identity %s has no path", id)
	}
	return id, nil
}

func peerError(id spiffeid.ID, err error, now time.Time) *PeerError {
	e := &PeerError{Kind: ErrUntrusted, Got: id, Now: now, Err: err}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		// crypto/x509 has one reason for both ends of the lifetime.
		e.Kind, e.Bound = ErrExpired, invalid.Cert.NotAfter
		if now.Before(invalid.Cert.NotBefore) {
			e.Kind, e.Bound = ErrNotYetValid, invalid.Cert.NotBefore
		}
	}
	return e
}

// verifyAccepted is Verify for one of the accepted identities.
func verifyAccepted(chain []*x509.Certificate, bundle *Bundle, now time.Time, accepted []spiffeid.ID) error {
	id, err := Verify(chain, bundle, now)
	if err != nil {
		return err
	}
	if !slices.Contains(accepted, id) {
		return &PeerError{Kind: ErrIdentityMismatch, Got: id, Want: accepted}
	}
	return nil
}

// PeerIdentity returns the identity of a connection's peer. The connection
// must come from ClientConfig or ServerConfig, which have verified it.
func PeerIdentity(state tls.ConnectionState) (spiffeid.ID, error) {
	if len(state.PeerCertificates) == 0 {
		return spiffeid.ID{}, ErrNoCertificate
	}
	return leafID(state.PeerCertificates[0])
}

// PeerExpires returns when the peer's chain ends to be valid. Whether a
// connection outlives it is the caller's policy; TLS itself does not care.
func PeerExpires(state tls.ConnectionState) time.Time {
	var first time.Time
	for _, c := range state.PeerCertificates {
		if first.IsZero() || c.NotAfter.Before(first) {
			first = c.NotAfter
		}
	}
	return first
}
