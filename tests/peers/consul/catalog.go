// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// Register registers a service with the agent, in its place if it is there.
func (s *Server) Register(t Test, r *api.AgentServiceRegistration) {
	t.Helper()
	if err := s.Put(t.Context(), r); err != nil {
		t.Fatalf("%v", err)
	}
}

// Put is Register for programs that are no tests.
func (s *Server) Put(ctx context.Context, r *api.AgentServiceRegistration) error {
	if r.Connect != nil && r.Connect.SidecarService != nil && r.Connect.SidecarService.Port != 0 {
		r.Connect.SidecarService.Checks = sidecarChecks(r)
	}
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(ctx)
	if err := s.Client().Agent().ServiceRegisterOpts(r, opts); err != nil {
		return fmt.Errorf("register %s: %w", r.Name, err)
	}
	return nil
}

// listens is the name of the check of a sidecar's public port.
const listens = "Connect Sidecar Listening"

// sidecarChecks are those that the agent gives a sidecar
// (agent/sidecar_service.go), but that they begin as passing. The alias would
// begin as critical, and a minute or two may go by until the servers hear that it
// is not: the agent loses that change now and then, when it registers the
// sidecar once more after it has read proxy-defaults (setCheckStateLocked in
// agent/local/state.go).
func sidecarChecks(r *api.AgentServiceRegistration) api.AgentServiceChecks {
	sidecar := r.Connect.SidecarService
	public := net.JoinHostPort(cmp.Or(sidecar.Address, r.Address, loopback.String()), strconv.Itoa(sidecar.Port))
	return api.AgentServiceChecks{
		{Name: listens, TCP: public, Interval: "10s", Status: api.HealthPassing},
		{Name: "Connect Sidecar Aliasing " + cmp.Or(r.ID, r.Name), AliasService: cmp.Or(r.ID, r.Name), Status: api.HealthPassing},
	}
}

// Deregister takes a service out of the agent.
func (s *Server) Deregister(t Test, id string) {
	t.Helper()
	q := (&api.QueryOptions{}).WithContext(t.Context())
	if err := s.Client().Agent().ServiceDeregisterOpts(id, q); err != nil {
		t.Fatalf("deregister %s: %v", id, err)
	}
}

// Write writes a configuration entry.
func (s *Server) Write(t Test, entry api.ConfigEntry) {
	t.Helper()
	w := (&api.WriteOptions{}).WithContext(t.Context())
	if _, _, err := s.Client().ConfigEntries().Set(entry, w); err != nil {
		t.Fatalf("write %s %s: %v", entry.GetKind(), entry.GetName(), err)
	}
}

// Delete deletes a configuration entry.
func (s *Server) Delete(t Test, kind, name string) {
	t.Helper()
	w := (&api.WriteOptions{}).WithContext(t.Context())
	if _, err := s.Client().ConfigEntries().Delete(kind, name, w); err != nil {
		t.Fatalf("delete %s %s: %v", kind, name, err)
	}
}

// Intend writes an intention between two services; "*" is all of them.
func (s *Server) Intend(t Test, source, destination string, action api.IntentionAction) {
	t.Helper()
	w := (&api.WriteOptions{}).WithContext(t.Context())
	_, err := s.Client().Connect().IntentionUpsert(&api.Intention{
		SourceName: source, DestinationName: destination, Action: action,
	}, w)
	if err != nil {
		t.Fatalf("write intention of %s to %s: %v", source, destination, err)
	}
}

// ConfigureCA changes the configuration of Consul's CA.
func (s *Server) ConfigureCA(t Test, change func(map[string]any)) {
	t.Helper()
	c := s.Client().Connect()
	config, _, err := c.CAGetConfig((&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("read configuration of the CA: %v", err)
	}
	change(config.Config)
	w := (&api.WriteOptions{}).WithContext(t.Context())
	if _, err := c.CASetConfig(config, w); err != nil {
		t.Fatalf("configure CA: %v", err)
	}
}

// ShortLeaves makes leaves live for less than the hour that Consul demands. They
// begin a minute before they are issued, so less than that is none at all.
func (s *Server) ShortLeaves(t Test, ttl time.Duration) {
	t.Helper()
	s.ConfigureCA(t, func(c map[string]any) { c["LeafCertTTL"], c["SkipValidate"] = ttl.String(), true })
}

// RotateCA gives Consul's CA a new root. The old one stays trusted, and has
// signed the new one's intermediate, until its leaves are gone.
func (s *Server) RotateCA(t Test) {
	t.Helper()
	// A root belongs to its key: another key, another root.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("generate key: %v", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatalf("encode key: %v", err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	s.ConfigureCA(t, func(c map[string]any) { c["PrivateKey"] = text })
}

var policies atomic.Uint64

// Token makes a token with the rules, such as `service "web" { policy = "write" }`.
func (s *Server) Token(t Test, rules string) *api.ACLToken {
	t.Helper()
	w := (&api.WriteOptions{}).WithContext(t.Context())
	name := fmt.Sprintf("test-%d", policies.Add(1))
	if _, _, err := s.Client().ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, w); err != nil {
		t.Fatalf("make policy: %v", err)
	}
	return s.token(t, &api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{Name: name}}})
}

// ServiceToken makes a token with the service identities of the services, as
// Consul's documentation recommends for sidecars.
func (s *Server) ServiceToken(t Test, services ...string) *api.ACLToken {
	t.Helper()
	token := &api.ACLToken{}
	for _, name := range services {
		token.ServiceIdentities = append(token.ServiceIdentities, &api.ACLServiceIdentity{ServiceName: name})
	}
	return s.token(t, token)
}

func (s *Server) token(t Test, token *api.ACLToken) *api.ACLToken {
	t.Helper()
	made, _, err := s.Client().ACL().TokenCreate(token, (&api.WriteOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatalf("make token: %v", err)
	}
	return made
}

// Revoke deletes a token.
func (s *Server) Revoke(t Test, token *api.ACLToken) {
	t.Helper()
	w := (&api.WriteOptions{}).WithContext(t.Context())
	if _, err := s.Client().ACL().TokenDelete(token.AccessorID, w); err != nil {
		t.Fatalf("revoke token: %v", err)
	}
}
