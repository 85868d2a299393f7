// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"syscall"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func TestNames(t *testing.T) {
	name := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	seen := map[string]bool{}
	for _, r := range append(reason.All(), reason.None) {
		if !name.MatchString(r.String()) || r.Text() == "" {
			t.Errorf("reason %d: name %q, text %q", r, r, r.Text())
		}
		if seen[r.String()] {
			t.Errorf("reason %q twice", r)
		}
		seen[r.String()] = true
		back, err := reason.Parse(r.String())
		if err != nil || back != r {
			t.Errorf("Parse(%q) = %v, %v", r, back, err)
		}
	}
	if _, err := reason.Parse("nonsense"); !errors.Is(err, reason.ErrUnknown) {
		t.Errorf("Parse(nonsense) = %v", err)
	}
	if got := reason.Reason(255).String(); got != "unknown" {
		t.Errorf("Reason(255) = %q", got)
	}
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal(map[string]reason.Reason{"reason": reason.PolicyDenied})
	if err != nil || string(text) != `{"reason":"policy_denied"}` {
		t.Fatalf("Marshal = %s, %v", text, err)
	}
	var back map[string]reason.Reason
	if err := json.Unmarshal(text, &back); err != nil || back["reason"] != reason.PolicyDenied {
		t.Fatalf("Unmarshal = %v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"reason":"x"}`), &back); !errors.Is(err, reason.ErrUnknown) {
		t.Fatalf("Unmarshal(x) = %v", err)
	}
}

func TestOf(t *testing.T) {
	dial := func(errno error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	for _, test := range []struct {
		name string
		err  error
		want reason.Reason
	}{
		{"nil", nil, reason.None},
		{"wrapped", fmt.Errorf("dial web: %w", reason.Wrap(reason.IdentityMismatch, io.EOF)), reason.IdentityMismatch},
		{"wrap wins over the cause", reason.Wrap(reason.PeerUnavailable, dial(syscall.ECONNREFUSED)), reason.PeerUnavailable},
		{"refused", dial(syscall.ECONNREFUSED), reason.ConnectRefused},
		{"timed out", dial(syscall.ETIMEDOUT), reason.ConnectTimeout},
		{"deadline", &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, reason.ConnectTimeout},
		{"context", context.DeadlineExceeded, reason.ConnectTimeout},
		{"unreachable", dial(syscall.EHOSTUNREACH), reason.ConnectUnreachable},
		{"fd limit", os.NewSyscallError("accept4", syscall.EMFILE), reason.LimitFD},
		{"memory", os.NewSyscallError("socket", syscall.ENOBUFS), reason.LimitMemory},
		{"reset", os.NewSyscallError("read", syscall.ECONNRESET), reason.Reset},
		{"expired", &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, reason.TLSExpired},
		{"constraint", x509.CertificateInvalidError{Reason: x509.NotAuthorizedToSign}, reason.PeerUntrusted},
		{"unknown authority", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, reason.PeerUntrusted},
		{"any verification", &tls.CertificateVerificationError{Err: errors.New("x")}, reason.PeerUntrusted},
		{"alert expired", fmt.Errorf("remote error: %w", tls.AlertError(45)), reason.TLSExpired},
		{"alert unknown ca", tls.AlertError(48), reason.PeerUntrusted},
		{"alert unrecognized name", tls.AlertError(112), reason.IdentityMismatch},
		{"alert certificate required", tls.AlertError(116), reason.PeerMissing},
		{"alert access denied", tls.AlertError(49), reason.PeerDenied},
		{"alert other", tls.AlertError(40), reason.TLSHandshake},
		{"no TLS", tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, reason.TLSHandshake},
		{"other", errors.New("x"), reason.Internal},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := reason.Of(test.err); got != test.want {
				t.Errorf("Of(%v) = %v, want %v", test.err, got, test.want)
			}
		})
	}
	if reason.Wrap(reason.Reset, nil) != nil {
		t.Error("Wrap(nil) is not nil")
	}
}
