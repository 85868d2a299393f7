// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func TestSecrets(t *testing.T) {
	random := strings.Repeat("ab", 32)
	client, server := strings.Repeat("c1", 32), strings.Repeat("5e", 32)
	var s Secrets
	for _, line := range []string{
		"CLIENT_HANDSHAKE_TRAFFIC_SECRET " + random + " " + server + "\n",
		labelClient + " " + random + " " + client + "\n",
		"EXPORTER_SECRET whatever\n", "", "\n",
		labelServer + " " + random + " " + server + "\n",
	} {
		p := []byte(line)
		if n, err := s.Write(p); n != len(line) || err != nil {
			t.Fatalf("%q: %d, %v", line, n, err)
		}
		if len(bytes.Trim(p, "\x00")) > 0 {
			t.Errorf("left behind: %q", p)
		}
	}
	if hex.EncodeToString(s.client) != client || hex.EncodeToString(s.server) != server {
		t.Errorf("%x, %x", s.client, s.server)
	}
	kept := s.client
	s.Erase()
	if s.client != nil || s.server != nil || !bytes.Equal(kept, make([]byte, 32)) {
		t.Error("not erased")
	}
}

// A line that is not as crypto/tls writes it ends the handshake, and no error
// tells what is in it.
func TestSecretsRefuses(t *testing.T) {
	random, secret := strings.Repeat("ab", 32), strings.Repeat("77", 32)
	good := labelClient + " " + random + " " + secret + "\n"
	for name, lines := range map[string][]string{
		"twice":        {good, good},
		"no line end":  {strings.TrimSuffix(good, "\n")},
		"no secret":    {labelClient + " " + random + "\n"},
		"nothing else": {labelClient},
		"short random": {labelClient + " " + random[2:] + " " + secret + "\n"},
		"no hex":       {labelClient + " " + random + " " + secret[2:] + "7g\n"},
		"odd":          {labelClient + " " + random + " " + secret[1:] + "\n"},
		"more":         {labelClient + " " + random + " " + secret + " more\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var s Secrets
			var err error
			for _, line := range lines {
				if err != nil {
					t.Fatal(err)
				}
				p := []byte(line)
				_, err = s.Write(p)
				if len(bytes.Trim(p, "\x00")) > 0 {
					t.Errorf("left behind: %q", p)
				}
			}
			if err == nil || strings.Contains(err.Error(), "77") || strings.Contains(err.Error(), "'g'") {
				t.Error(err)
			}
		})
	}
}
