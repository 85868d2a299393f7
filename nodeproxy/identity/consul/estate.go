// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

var _ identity.Heritable = (*Provider)(nil)

// estate is what Export writes.
type estate struct {
	Version     int           `json:"version"`
	TrustDomain string        `json:"trustDomain"`
	Roots       []estateRoot  `json:"roots"`
	Signing     string        `json:"signing,omitempty"`
	Leaves      []*estateLeaf `json:"leaves"`
}

type estateRoot struct {
	Certificate []byte `json:"certificate"`
	Active      bool   `json:"active,omitempty"`
}

type estateLeaf struct {
	Identity spiffeid.ID `json:"identity"`
	Chain    [][]byte    `json:"chain"`
	Key      []byte      `json:"key"` // PKCS #8
}

const estateVersion = 1

// Export implements identity.Heritable.
func (p *Provider) Export() ([]byte, error) {
	t := p.trusted.Load()
	e := estate{Version: estateVersion, TrustDomain: t.domain.Name(), Signing: t.signing}
	defer e.forget()
	for _, root := range t.bundle.Roots(t.domain) {
		e.Roots = append(e.Roots, estateRoot{root.Raw, t.active[identity.Fingerprint(root)]})
	}
	var failed error
	p.leaves.All(func(id spiffeid.ID, leaf *tls.Certificate) {
		key, err := leaf.PrivateKey.(identity.Key).PKCS8()
		failed = errors.Join(failed, err)
		e.Leaves = append(e.Leaves, &estateLeaf{Identity: id, Chain: leaf.Certificate, Key: key})
	})
	if failed != nil {
		return nil, fmt.Errorf("export leaves: %w", failed)
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("export leaves: %w", err)
	}
	return text, nil
}

// forget overwrites the keys.
func (e *estate) forget() {
	for _, l := range e.Leaves {
		if l != nil {
			clear(l.Key)
		}
	}
}

// Import implements identity.Heritable. A leaf that peers would not accept any
// more is left out.
func (p *Provider) Import(text []byte) error {
	var e estate
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("import leaves: %w", err)
	}
	defer e.forget()
	if e.Version != estateVersion {
		return fmt.Errorf("import leaves: version %d, want %d", e.Version, estateVersion)
	}
	if len(e.Roots) == 0 {
		return nil // there were none yet
	}
	t, err := e.trust()
	if err != nil {
		return fmt.Errorf("import leaves: %w", err)
	}
	if want := p.opts.TrustDomain; !want.IsZero() && want != t.domain {
		return fmt.Errorf("import leaves: they are of trust domain %s, node.trustDomain is %s", t.domain, want)
	}
	p.install(t)
	for _, l := range e.Leaves {
		if l == nil {
			continue
		}
		if leaf, err := p.revive(l); err != nil {
			p.log.Info("leaf of the process before is of no use", "identity", l.Identity.String(), "error", err)
		} else {
			p.took(l.Identity, leafAnswer{leaf: leaf}, nil)
		}
	}
	return nil
}

func (e *estate) trust() (*trust, error) {
	domain, err := spiffeid.TrustDomainFromString(e.TrustDomain)
	if err != nil {
		return nil, err
	}
	t := &trust{domain: domain, signing: e.Signing, active: make(map[string]bool)}
	var roots []*x509.Certificate
	for _, r := range e.Roots {
		root, err := x509.ParseCertificate(r.Certificate)
		if err == nil {
			err = identity.CheckRoot(root, domain)
		}
		if err != nil {
			return nil, err
		}
		if r.Active {
			t.active[identity.Fingerprint(root)] = true
		}
		roots = append(roots, root)
	}
	t.bundle = identity.NewBundle(map[spiffeid.TrustDomain][]*x509.Certificate{domain: roots})
	return t, nil
}

func (p *Provider) revive(l *estateLeaf) (*tls.Certificate, error) {
	var chain []*x509.Certificate
	for _, der := range l.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, c)
	}
	if err := p.check(l.Identity, chain); err != nil {
		return nil, err
	}
	key, err := identity.ParsePKCS8(l.Key)
	if err != nil {
		return nil, err
	}
	return identity.NewLeaf(chain, key)
}
