// SPDX-License-Identifier: Apache-2.0

package reason

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
)

// Error is an error whose reason is known.
type Error struct {
	Reason Reason
	Err    error
}

// Wrap gives err a reason; nil stays nil.
func Wrap(r Reason, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Reason: r, Err: err}
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Reason.Text()
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Of returns the reason that err carries, or the one that follows from the
// error of the kernel or of crypto/tls in its chain; Internal when nothing in
// it is known, None for nil.
func Of(err error) Reason {
	if err == nil {
		return None
	}
	if known := (*Error)(nil); errors.As(err, &known) {
		return known.Reason
	}
	for _, of := range []func(error) Reason{ofTLS, ofKernel, ofTLSText} {
		if r := of(err); r != None {
			return r
		}
	}
	return Internal
}

func ofTLS(err error) Reason {
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) {
		if invalid.Reason == x509.Expired {
			return TLSExpired
		}
		return PeerUntrusted
	}
	if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
		return PeerUntrusted
	}
	if verification := (*tls.CertificateVerificationError)(nil); errors.As(err, &verification) {
		return PeerUntrusted
	}
	if alert, ok := alertOf(err); ok {
		return ofAlert(alert)
	}
	if record := (tls.RecordHeaderError{}); errors.As(err, &record) {
		return TLSHandshake
	}
	return None
}

// ofTLSText reads what crypto/tls says in words only; a test with a real
// handshake notices when the words change.
func ofTLSText(err error) Reason {
	switch text := err.Error(); {
	case strings.Contains(text, "tls: client didn't provide a certificate"):
		return PeerMissing
	case strings.Contains(text, "tls: "):
		return TLSHandshake
	default:
		return None
	}
}

// alertOf returns the alert that the peer sent. crypto/tls reports it as a
// "remote error" around its own unexported alert type, a uint8; only QUIC gets
// the exported tls.AlertError.
func alertOf(err error) (uint8, bool) {
	if alert := tls.AlertError(0); errors.As(err, &alert) {
		return uint8(alert), true
	}
	remote := (*net.OpError)(nil)
	if !errors.As(err, &remote) || remote.Op != "remote error" {
		return 0, false
	}
	alert := reflect.ValueOf(remote.Err)
	if alert.Kind() != reflect.Uint8 {
		return 0, false
	}
	return uint8(alert.Uint()), true
}

// ofAlert maps the alerts of RFC 8446 section 6.2 that tell who is to blame.
func ofAlert(code uint8) Reason {
	switch code {
	case 45: // certificate_expired
		return TLSExpired
	case 42, 43, 44, 46, 48: // bad, unsupported, revoked, unknown certificate; unknown_ca
		return PeerUntrusted
	case 49: // access_denied
		return PeerDenied
	case 112: // unrecognized_name: nobody there has the identity that SNI asks for
		return IdentityMismatch
	case 116: // certificate_required
		return PeerMissing
	default:
		return TLSHandshake
	}
}

func ofKernel(err error) Reason {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ConnectRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH),
		errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.ENETDOWN):
		return ConnectUnreachable
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return LimitFD
	case errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ENOBUFS):
		return LimitMemory
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return Reset
	// ETIMEDOUT, and what the deadlines of package net and of contexts say.
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, context.DeadlineExceeded):
		return ConnectTimeout
	default:
		return None
	}
}
