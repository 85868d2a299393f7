// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Options are what the configurations of different transports differ in. The
// zero value is for hbone.
type Options struct {
	// Protocols are offered by ALPN, and one of them must be chosen; nil is
	// "h2", empty is no ALPN at all.
	Protocols []string
	// MinVersion is TLS 1.3 by default.
	MinVersion uint16
	// LeafTimeout bounds the first fetch of a leaf within a handshake, 5 s
	// by default.
	LeafTimeout time.Duration
	// Now is time.Now by default.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Protocols == nil {
		o.Protocols = []string{"h2"}
	}
	if o.MinVersion == 0 {
		o.MinVersion = tls.VersionTLS13
	}
	if o.LeafTimeout == 0 {
		o.LeafTimeout = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// base is common to both sides.
func (o Options) base() *tls.Config {
	return &tls.Config{
		MinVersion: o.MinVersion,
		NextProtos: o.Protocols,
		CurvePreferences: []tls.CurveID{
			tls.X25519MLKEM768, tls.X25519, tls.CurveP256,
		},
		SessionTicketsDisabled: true,
		// A tunnel carries bulk from its first byte on; small first records
		// cost throughput and gain nothing without a browser behind them.
		DynamicRecordSizingDisabled: true,
		Time:                        o.Now,
	}
}

// checkProtocol refuses a peer without ALPN, which crypto/tls lets pass.
func (o Options) checkProtocol(state tls.ConnectionState) error {
	if len(o.Protocols) > 0 && !slices.Contains(o.Protocols, state.NegotiatedProtocol) {
		return fmt.Errorf("%w, want %s", ErrNoProtocol, strings.Join(o.Protocols, " or "))
	}
	return nil
}

// ClientConfig is for connections of the workload source to a server that must
// prove one of the accepted identities. It may be kept and shared by any number
// of connections: leaves and roots are looked up in each handshake.
func ClientConfig(p Provider, source spiffeid.ID, accepted []spiffeid.ID, serverName string, opts Options) *tls.Config {
	opts = opts.withDefaults()
	accepted = slices.Clone(accepted)
	config := opts.base()
	config.ServerName = serverName
	// Certificates carry SPIFFE IDs, not host names: crypto/tls's own check
	// gives way to VerifyConnection, which runs in every handshake.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verifyAccepted(state.PeerCertificates, p.Bundle(), opts.Now(), accepted); err != nil {
			return err
		}
		return opts.checkProtocol(state)
	}
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		recordOf(info.Context()).local = source
		return leafWithin(info.Context(), p, source, opts.LeafTimeout)
	}
	return config
}

// Local finds the identity of this node that a server name stands for; "" asks
// for the one to show to a client that sends no name.
type Local interface {
	Local(serverName string) (spiffeid.ID, bool)
}

// ServerConfig is for connections to the identities in local. Clients must
// prove an identity of any trust domain in the bundle; whether that one may
// connect is up to policy.
func ServerConfig(p Provider, local Local, opts Options) *tls.Config {
	opts = opts.withDefaults()
	config := opts.base()
	// The verification of RequireAndVerifyClientCert is for one pool of
	// roots and knows no trust domains; VerifyConnection does it instead.
	config.ClientAuth = tls.RequireAnyClientCert
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if _, err := Verify(state.PeerCertificates, p.Bundle(), opts.Now()); err != nil {
			return err
		}
		return opts.checkProtocol(state)
	}
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		record := recordOf(hello.Context())
		id, ok := local.Local(strings.ToLower(hello.ServerName))
		if !ok {
			record.err = ErrNoServerName
			if hello.ServerName != "" {
				record.err = fmt.Errorf("%w: %q", ErrUnknownServerName, clip(hello.ServerName))
			}
			// No certificate and no error is what makes crypto/tls send
			// unrecognized_name; any error would become internal_error.
			return nil, nil
		}
		record.local = id
		leaf, err := leafWithin(hello.Context(), p, id, opts.LeafTimeout)
		record.err = err
		return leaf, err
	}
	return config
}

func leafWithin(ctx context.Context, p Provider, id spiffeid.ID, most time.Duration) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	leaf, err := p.Leaf(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("get leaf of %s: %w", id, err)
	}
	return leaf, nil
}
