// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// account is the part of a session that keeps its books.
type account struct {
	telemetry.Connection
	shard *telemetry.Shard
	open  bool
}

// begin opens the account, or opens it anew for another endpoint; the one
// before is written off with why.
func (a *account) begin(r telemetry.Record, why error) {
	if a.open {
		a.Close(reason.Of(why), detail(why))
	}
	a.open = true
	a.shard.Open(&a.Connection, r)
}

// end closes the account; a connection that never reached an endpoint is
// counted as refused, unless its client itself gave up.
func (a *account) end(m *telemetry.Metrics, r func() telemetry.Record, why reason.Reason, text string) {
	switch {
	case !a.open:
		m.Refused(r(), why, text)
	case a.Reached() || why == reason.None || why == reason.Reset:
		a.Close(why, text)
	default:
		a.Refuse(why, text)
	}
}

func detail(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// judged is a session that this node's policy may be about.
type judged interface {
	// illegal returns why the connection may not be open; nil lets it be, as one
	// that ends on another node, whose policy decides.
	illegal(v *view) error
}

// illegal returns why a session must end under the policy in force; nil lets it
// live.
func illegal(v *view, s any) error {
	j, ok := s.(judged)
	if !ok {
		return nil
	}
	if err := j.illegal(v); err != nil {
		return reason.Wrap(reason.PolicyChanged, err)
	}
	return nil
}

// denial is the error of a connection that policy does not allow.
func denial(r policy.Request, d policy.Decision) error {
	who := "plaintext from " + r.Source.Addr().String()
	if !r.Identity.IsZero() {
		who = r.Identity.String()
	}
	return &deniedError{who: who, verdict: d.Verdict, workload: r.Workload, port: r.Port}
}

// audited tells of a connection that policy would deny were it enforced.
func audited(m *telemetry.Metrics, record func() telemetry.Record, r policy.Request, d policy.Decision) {
	if d.Allowed && d.Audited {
		d.Verdict = d.Audit
		m.Audited(record(), d.Policy, denial(r, d).Error())
	}
}

// deniedError says who was denied what, and by which policy.
type deniedError struct {
	who      string
	verdict  policy.Verdict
	workload mesh.Name
	port     uint16
}

func (e *deniedError) Error() string {
	text := e.who + " may not connect to " + e.workload.String() + ": " + string(e.verdict.Reason)
	if e.verdict.Policy != "" {
		text += " " + e.verdict.Policy
	}
	return text
}

// idString is the text of an identity; the zero one is nothing.
func idString(id spiffeid.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

// loopbackOf returns the loopback address of a's family.
func loopbackOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
