// SPDX-License-Identifier: Apache-2.0

package consulagent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

// TestRealAgent reaches one over a socket and over TLS, where it wants to see
// certificates, and with ACLs.
func TestRealAgent(t *testing.T) {
	dir := t.TempDir()
	pair(t, dir)
	port, err := consul.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "http.sock")
	s := consul.Start(t, consul.Options{ACLDefaultDeny: true, HCL: fmt.Sprintf(`
		ports { https = %d }
		addresses { http = "127.0.0.1 unix://%s" }
		tls { https { ca_file = "%[3]s/cert.pem" cert_file = "%[3]s/cert.pem" key_file = "%[3]s/key.pem" verify_incoming = true } }
	`, port, socket, dir)})
	tls := consulagent.Settings{
		Address: fmt.Sprintf("https://127.0.0.1:%d", port), ServerName: "agent.test", Token: s.ManagementToken,
		CAFile: filepath.Join(dir, "cert.pem"), CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"),
	}
	noCertificate, otherName := tls, tls
	noCertificate.CertFile, noCertificate.KeyFile = "", ""
	otherName.ServerName = "other.test"
	for _, tt := range []struct {
		name     string
		settings consulagent.Settings
		ok       bool
	}{
		{"TCP", consulagent.Settings{Address: s.HTTPAddr.String(), Token: s.ManagementToken}, true},
		{"socket", consulagent.Settings{Address: "unix://" + socket, Token: s.ManagementToken}, true},
		{"TLS", tls, true},
		{"TLS without a certificate", noCertificate, false},
		{"TLS with another name", otherName, false},
		{"no token", consulagent.Settings{Address: s.HTTPAddr.String()}, false},
		{"nobody there", consulagent.Settings{Address: "unix://" + socket + ".none"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := connect(t, tt.settings, 2)
			_, _, err := a.ACL().TokenReadSelf((&api.QueryOptions{}).WithContext(t.Context()))
			if (err == nil) != tt.ok {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("TLS shares a connection", func(t *testing.T) { share(t, connect(t, tls, 1)) })
}

func connect(t *testing.T, s consulagent.Settings, connections int) *consulagent.Agent {
	t.Helper()
	a, err := consulagent.New(s, connections)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// share asks something while a blocking query has the only connection: over TLS
// the agent speaks HTTP/2.
func share(t *testing.T, a *consulagent.Agent) {
	_, meta, err := a.Catalog().Services((&api.QueryOptions{}).WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { close(asked) },
	})
	changed := make(chan error, 1)
	go func() {
		q := &api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: 10 * time.Minute}
		_, _, err := a.Catalog().Services(q.WithContext(ctx))
		changed <- err
	}()
	<-asked
	opts := api.ServiceRegisterOpts{}.WithContext(t.Context())
	if err := a.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{Name: "web"}, opts); err != nil {
		t.Error(err)
	}
	select {
	case err := <-changed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the registration had to wait for the query's end")
	}
}

// pair writes a certificate that is its own root and good for both sides.
func pair(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agent.test"}, DNSNames: []string{"agent.test"},
		IPAddresses: []net.IP{net.IPv6loopback}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
