// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"strings"
	"testing"
)

// The records after the handshake of RFC 8448, section 3, "Simple 1-RTT
// Handshake", without the server's ticket.
const (
	clientSecret = "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
	serverSecret = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"
	clientKey    = "17422dda596ed5d9acd890e3c63f5051"
	clientIV     = "5b78923dee08579033e523d9"
	serverKey    = "9f02283b6c9c07efc26bb9f2ac92e356"
	serverIV     = "cf782b88dd83549aadf1e984"
	clientData   = "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4"
	clientClose  = "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3"
	serverData   = "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d"
	serverClose  = "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRFC8448(t *testing.T) {
	state := &tls.ConnectionState{HandshakeComplete: true, Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}
	end := func(client bool) *Layer {
		l, err := New(state, &Secrets{client: unhex(t, clientSecret), server: unhex(t, serverSecret)}, client)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	client, server := end(true), end(false)
	server.out.seq, client.in.seq = 1, 1 // the ticket was 0
	payload := make([]byte, 50)
	for i := range payload {
		payload[i] = byte(i)
	}
	for _, c := range []struct {
		name       string
		from, to   *Layer
		data, last string
	}{
		{"client", client, server, clientData, clientClose},
		{"server", server, client, serverData, serverClose},
	} {
		data := said(t, c.from, nil, string(payload))
		if got := hex.EncodeToString(data); got != c.data {
			t.Errorf("%s: data %s", c.name, got)
		}
		if p, err := c.to.all(unhex(t, c.data)); err != nil || !bytes.Equal(p, payload) {
			t.Errorf("%s: %x, %v", c.name, p, err)
		}
		if got := hex.EncodeToString(c.from.Close(nil)); got != c.last {
			t.Errorf("%s: close_notify %s", c.name, got)
		}
		if _, err := c.to.all(unhex(t, c.last)); err != io.EOF {
			t.Errorf("%s: close_notify: %v", c.name, err)
		}
	}
}

// The traffic keys of the same handshake.
func TestKeys(t *testing.T) {
	s := suites[tls.TLS_AES_128_GCM_SHA256]
	for _, c := range []struct{ secret, label, want string }{
		{clientSecret, "key", clientKey},
		{clientSecret, "iv", clientIV},
		{serverSecret, "key", serverKey},
		{serverSecret, "iv", serverIV},
	} {
		got, err := s.expand(unhex(t, c.secret), c.label, len(c.want)/2)
		if err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%s: %x, %v", c.label, got, err)
		}
	}
}

func TestSuites(t *testing.T) {
	for id, s := range suites {
		if got := s.hash().Size(); got != s.hashLen {
			t.Errorf("%s: hash of %d bytes", tls.CipherSuiteName(id), got)
		}
		if a, err := s.aead(make([]byte, s.keyLen)); err != nil || a.Overhead() != tagLen || a.NonceSize() != ivLen {
			t.Errorf("%s: %v", tls.CipherSuiteName(id), err)
		}
	}
	for _, s := range tls.CipherSuites() {
		if strings.HasPrefix(s.Name, "TLS_") && len(s.SupportedVersions) == 1 && s.SupportedVersions[0] == tls.VersionTLS13 && suites[s.ID] == nil {
			t.Errorf("crypto/tls may negotiate %s", s.Name)
		}
	}
}
