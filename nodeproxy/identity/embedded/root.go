// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
)

// rootBackdate is wide: a root is trusted by decision, not by its clock.
const rootBackdate = time.Hour

// root is one generation of the CA.
type root struct {
	cert      *x509.Certificate
	key       identity.Key
	canSign   bool // key is set
	signsFrom time.Time
	// trustedUntil is when the last leaf of a succeeded root has expired;
	// zero while no other root is to succeed it.
	trustedUntil time.Time
}

func (r *root) name() string { return "root-" + identity.Fingerprint(r.cert)[:16] }

// newRoot makes a self-signed root, which vouches for leaves and for one level
// of intermediates.
func newRoot(td spiffeid.TrustDomain, now time.Time, ttl time.Duration) (*root, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate root key: %w", err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{
			CommonName:   "meshproxy CA " + td.Name(),
			SerialNumber: now.UTC().Format("20060102150405"),
		},
		NotBefore:             now.Add(-rootBackdate),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            1,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	cert, err := sign(template, template, key.Public(), identity.NewKey(key))
	if err != nil {
		return nil, nil, fmt.Errorf("sign root: %w", err)
	}
	return &root{cert: cert, key: identity.NewKey(key), canSign: true, signsFrom: now}, key, nil
}

// leafTemplate has no subject, which makes the SAN extension critical; the
// usages are those of X509-SVID, section 4.3 and 4.4.
func (r *root) leafTemplate(id spiffeid.ID, now time.Time, ttl, backdate time.Duration) *x509.Certificate {
	notAfter := now.Add(ttl)
	for _, end := range []time.Time{r.cert.NotAfter, r.trustedUntil} {
		if !end.IsZero() && end.Before(notAfter) {
			notAfter = end
		}
	}
	return &x509.Certificate{
		NotBefore:             now.Add(-backdate),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{id.URL()},
	}
}

// issue makes a leaf with a key of its own.
func (r *root) issue(id spiffeid.ID, now time.Time, ttl, backdate time.Duration) (*tls.Certificate, error) {
	if !r.canSign {
		return nil, fmt.Errorf("root %s has no key here", r.name())
	}
	template := r.leafTemplate(id, now, ttl, backdate)
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("root %s signs no more since %s", r.name(), template.NotAfter.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	cert, err := sign(template, r.cert, key.Public(), r.key)
	if err != nil {
		return nil, fmt.Errorf("sign leaf: %w", err)
	}
	return identity.NewLeaf([]*x509.Certificate{cert}, identity.NewKey(key))
}

func sign(template, parent *x509.Certificate, public any, key identity.Key) (*x509.Certificate, error) {
	// A serial number is drawn by CreateCertificate.
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// encodeKey returns the PEM form of a key; the caller overwrites it.
func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
