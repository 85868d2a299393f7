// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"
)

// Register registers a service with the agent, in its place if it is there.
func (s *Server) Register(t Test, r *api.AgentServiceRegistration) {
	t.Helper()
	opts := api.ServiceRegisterOpts{ReplaceExistingChecks: true}.WithContext(t.Context())
	if err := s.Client().Agent().ServiceRegisterOpts(r, opts); err != nil {
		t.Fatalf("register %s: %v", r.Name, err)
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
