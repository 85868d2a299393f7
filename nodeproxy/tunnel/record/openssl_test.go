// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl(1) is the peer, with each cipher suite, as a client and as a server.
// Both ends update their keys, and answer each other.
func TestOpenSSL(t *testing.T) {
	cert := certificate(t)
	for id := range suites {
		name := tls.CipherSuiteName(id)
		t.Run(name+"/client", func(t *testing.T) {
			p := openssl(t, cert, "s_server", "-accept", "127.0.0.1:0", "-ciphersuites", name, "-num_tickets", "3")
			addr, _ := strings.CutPrefix(p.await(t, "ACCEPT 127"), "ACCEPT ")
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			p.converse(t, nc, cert, true, id)
		})
		t.Run(name+"/server", func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			p := openssl(t, cert, "s_client", "-connect", ln.Addr().String(), "-ciphersuites", name)
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			p.converse(t, nc, cert, false, id)
		})
	}
}

// program is openssl(1) as it runs.
type program struct {
	in  io.WriteCloser
	out chan string
}

func openssl(t *testing.T, cert tls.Certificate, args ...string) *program {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cert.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "openssl", append(args, "-tls1_3", "-cert", file)...)
	p := &program{out: make(chan string, 4096)}
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if p.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.out <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		w.Close()
		<-ended
	})
	return p
}

// await returns the next line that begins so.
func (p *program) await(t *testing.T, begin string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line := <-p.out:
			if strings.HasPrefix(line, begin) {
				return line
			}
		case <-deadline:
			t.Fatalf("openssl never said %q", begin)
		}
	}
}

func (p *program) converse(t *testing.T, nc net.Conn, cert tls.Certificate, client bool, suite uint16) {
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	o, err := secure(nc, cert, client)
	if err != nil {
		t.Fatal(err)
	}
	if o.suite != suite {
		t.Fatal("suite", tls.CipherSuiteName(o.suite))
	}
	o.layer.limit = 3 // this end updates keys, and asks for the peer's
	lines := bufio.NewReader(o)
	for i := range 12 {
		if i == 6 {
			o.layer.limit = keyRecords // from the next message on it is the peer's turn
		}
		fmt.Fprintf(o, "ours %d\n", i)
		p.await(t, fmt.Sprintf("ours %d", i))
		if i >= 8 {
			// Commands, when they begin what is read: KeyUpdate, and one that asks.
			io.WriteString(p.in, []string{"k\n", "K\n"}[i%2])
			if err := o.awaitUpdate(); err != nil {
				t.Fatal(err)
			}
		}
		want := fmt.Sprintf("theirs %d\n", i)
		io.WriteString(p.in, want)
		if got, err := lines.ReadString('\n'); got != want || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if err := o.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(o); err != nil || len(rest) > 0 {
		t.Errorf("end: %q, %v", rest, err)
	}
}

// awaitUpdate reads up to the peer's next KeyUpdate.
func (o *own) awaitUpdate() error {
	secret := bytes.Clone(o.layer.in.secret)
	for bytes.Equal(secret, o.layer.in.secret) {
		payload, n, err := o.layer.Open(o.buf)
		if err != nil || len(payload) > 0 {
			return fmt.Errorf("%q instead of KeyUpdate: %w", payload, err)
		}
		if o.buf = o.buf[n:]; n > 0 {
			continue
		}
		more := make([]byte, 1000)
		k, err := o.Conn.Read(more)
		if err != nil {
			return err
		}
		o.buf = append(o.buf[:len(o.buf):len(o.buf)], more[:k]...)
	}
	return nil
}
