// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

// TestSockets: both ends of a connection are made by processes elsewhere and
// used here.
func TestSockets(t *testing.T) {
	net, err := testnet.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := Start(net.Host("b"), "server", "server")
	if err != nil {
		t.Fatal(err)
	}
	client, err := Start(net.Host("a"), "client", "client")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := server.Listen("10.77.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := client.Dial("10.77.0.2:81"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial where nobody listens: %v", err)
	}
	c, err := client.Dial("10.77.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.RemoteAddr().String() != c.LocalAddr().String() {
		t.Errorf("accepted %s, dialled from %s", s.RemoteAddr(), c.LocalAddr())
	}
	// The sockets outlive their makers.
	for _, o := range []*Opener{server, client} {
		if err := o.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}
