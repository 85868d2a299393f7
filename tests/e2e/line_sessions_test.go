// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/peers/credentials"
)

// TestLineSessions: clients resume TLS sessions, as Envoys do, and are no less
// authorized for that.
func TestLineSessions(t *testing.T) {
	l := newLab(t, lineMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.start("a", "listeners: {inboundMTLS: 20000}\n")
	l.serve(a, "web", "-name", "web", "-tcp", "10.77.0.1:7001")
	l.serve(a, "api", "-name", "api", "-tcp", "10.77.0.1:7002")
	leaf, err := credentials.Issue(l.caDir, frontID)
	must(t, err)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			l := l.in(t)
			kept := &oneSession{}
			dial := func(service string) (string, bool, error) {
				config := leaf.Client(service+".default.dc1.internal.mesh.internal", consulID(service))
				config.NextProtos, config.MinVersion, config.MaxVersion = nil, 0, version
				config.ClientSessionCache = kept
				s, state, err := l.askTLS(b, "10.77.0.1:20000", config, "hello")
				return s.Server, state.DidResume, err
			}
			check := func(when, service string, resumed bool) {
				t.Helper()
				server, did, err := dial(service)
				if err != nil || server != service || did != resumed {
					t.Errorf("%s: answer of %q, resumed %t, %v; want %q, %t", when, server, did, err, service, resumed)
				}
			}
			check("first", "web", false)
			check("second", "web", true)
			check("third", "web", true)
			check("session of another workload", "api", false)
			check("of its own", "api", true)

			l.writeMesh(strings.ReplaceAll(l.mesh, "action: allow", "action: deny"))
			l.eventually("refusal of a client that resumes", func() error {
				if server, _, err := dial("api"); !errors.Is(err, io.EOF) {
					return errors.New("answer of " + server)
				}
				return nil
			})
			l.writeMesh(strings.ReplaceAll(l.mesh, "action: deny", "action: allow"))
			l.eventually("allowed again, resuming", func() error {
				_, did, err := dial("api")
				if err == nil && !did {
					err = errors.New("a full handshake")
				}
				return err
			})
		})
	}
	_, text, err := l.get(a, "http://127.0.0.1:15020/metrics")
	must(t, err)
	for _, resumed := range []string{"false", "true"} {
		if err := counts(text, "meshproxy_handshakes_total{", `role="server"`, `result="ok"`, fmt.Sprintf("resumed=%q", resumed)); err != nil {
			t.Error(err)
		}
	}
}

// oneSession is a client's cache that offers what came last, whatever for.
type oneSession struct{ session *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.session, o.session != nil }

func (o *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		o.session = s
	}
}
