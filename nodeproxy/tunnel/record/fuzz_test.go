// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"crypto/tls"
	"testing"
)

// FuzzOpen opens what an attacker on the way could send, behind a good record:
// nothing of it may come out as payload.
func FuzzOpen(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 40}, byte(0))
	f.Add([]byte{21, 3, 3, 0, 2, 2, 40}, byte(1))
	f.Add(append([]byte{23, 3, 3, 0, 17}, make([]byte, 17)...), byte(2))
	f.Fuzz(func(t *testing.T, wild []byte, suite byte) {
		client, server := layers(t, suiteIDs[int(suite)%len(suiteIDs)])
		good := said(t, client, nil, "payload")
		got, err := server.all(append(good, wild...))
		if string(got) != "payload" {
			t.Fatalf("%q", got)
		}
		if _, n, again := server.Open(wild); n != 0 || err != nil && again != err {
			t.Fatal(n, again)
		}
	})
}

// FuzzContent opens what a peer that has the keys could send. script is cut into
// records: content type, length, bytes of content and padding.
func FuzzContent(f *testing.F) {
	f.Add([]byte{23, 3, 'a', 'b', 'c', 22, 5, 24, 0, 0, 1, 1, 21, 2, 1, 0}, true)
	f.Add([]byte{22, 6, 4, 0, 0, 2, 7, 7, 23, 0, 0, 23, 2, 'x', 0}, true)
	f.Add([]byte{22, 2, 24, 0, 22, 3, 0, 1, 0, 23, 1, 'x'}, false)
	f.Fuzz(func(t *testing.T, script []byte, toClient bool) {
		from, to := layers(t, tls.TLS_AES_128_GCM_SHA256)
		if toClient {
			from, to = to, from
		}
		for len(script) >= 2 && script[0] != 0 { // that would be padding
			kind, n := script[0], min(int(script[1]), len(script)-2)
			content := script[2 : 2+n]
			script = script[2+n:]
			rec := from.pieces(kind, content, n%3)
			size := len(rec)
			generation := bytes.Clone(to.in.secret)
			got, took, err := to.Open(rec)
			switch {
			case kind == typeApplication && err == nil && !bytes.Equal(got, content):
				t.Fatalf("%q became %q", content, got)
			case kind != typeApplication && len(got) > 0:
				t.Fatalf("content type %d: payload %q", kind, got)
			case err == nil && took != size:
				t.Fatalf("took %d of %d bytes", took, size)
			case err != nil:
				if last := to.Close(nil); len(last) > headerLen+3+tagLen {
					t.Fatalf("last record of %d bytes", len(last))
				}
				return
			}
			if !bytes.Equal(generation, to.in.secret) {
				if err := from.out.update(); err != nil {
					t.Fatal(err)
				}
			}
			if answer, err := to.Answer(nil); err != nil || len(answer) > headerLen+6+tagLen {
				t.Fatal(len(answer), err)
			}
		}
	})
}

// FuzzSecrets writes a log that crypto/tls would not.
func FuzzSecrets(f *testing.F) {
	f.Add([]byte("CLIENT_TRAFFIC_SECRET_0 00 11\n"))
	f.Add([]byte("SERVER_TRAFFIC_SECRET_0  \n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var s Secrets
		p := bytes.Clone(line)
		if n, err := s.Write(p); err == nil && n != len(p) {
			t.Fatal(n)
		}
		if len(bytes.Trim(p, "\x00")) > 0 {
			t.Fatalf("left behind: %q", p)
		}
	})
}
