// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

func options(t *testing.T) *api.QueryOptions {
	return (&api.QueryOptions{}).WithContext(t.Context())
}

func TestRestart(t *testing.T) {
	for _, dev := range []bool{false, true} {
		t.Run(fmt.Sprintf("dev=%v", dev), func(t *testing.T) {
			s := consul.Start(t, consul.Options{Dev: dev})
			before, _, err := s.Client().Agent().ConnectCARoots(options(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			after, _, err := s.Client().Agent().ConnectCARoots(options(t))
			if err != nil {
				t.Fatal(err)
			}
			if same := before.TrustDomain == after.TrustDomain; same == dev {
				t.Errorf("trust domain %s, then %s", before.TrustDomain, after.TrustDomain)
			}
		})
	}
}

func TestPause(t *testing.T) {
	s := consul.Start(t, consul.Options{Dev: true})
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Client().Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx)); err == nil {
		t.Error("a paused agent answers")
	}
	if err := s.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := s.Await(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDefaultDeny(t *testing.T) {
	s := consul.Start(t, consul.Options{ACLDefaultDeny: true})
	leaf := func(service, token string) error {
		c, err := s.ClientWith(token)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = c.Agent().ConnectCALeaf(service, options(t))
		return err
	}
	web, db := s.Token(t, `service "web" { policy = "write" }`), s.ServiceToken(t, "db")
	if err := leaf("web", ""); err == nil {
		t.Error("leaf without a token")
	}
	if err := leaf("web", db.SecretID); err == nil || !strings.Contains(err.Error(), "lacks permission 'service:write'") {
		t.Errorf("leaf with another service's token: %v", err)
	}
	if err := leaf("web", web.SecretID); err != nil {
		t.Error(err)
	}
	s.Revoke(t, db)
	// Web's leaf is in the agent's cache now, which asks for no token.
	if err := leaf("db", db.SecretID); err == nil || !strings.Contains(err.Error(), "ACL not found") {
		t.Errorf("leaf with a revoked token: %v", err)
	}
}

func TestRotateCA(t *testing.T) {
	s := consul.Start(t, consul.Options{})
	for want := 2; want <= 3; want++ {
		s.RotateCA(t)
		err := testnet.Until(t.Context(), func() error { // the agent hears of it from its servers
			roots, _, err := s.Client().Agent().ConnectCARoots(options(t))
			if err == nil && len(roots.Roots) != want {
				err = fmt.Errorf("%d roots, want %d", len(roots.Roots), want)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestSidecars: a client behind the builtin proxy talks with a server behind
// Envoy, with ACLs, and on hosts as well as on this machine.
func TestSidecars(t *testing.T) {
	t.Run("here", func(t *testing.T) {
		talk(t, consul.Start(t, consul.Options{ACLDefaultDeny: true}), nil)
	})
	t.Run("hosts", func(t *testing.T) {
		net, err := testnet.New("server", "client")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := net.Close(); err != nil {
				t.Error(err)
			}
		})
		server := consul.Start(t, consul.Options{ACLDefaultDeny: true, Host: net.Host("server"), Node: "server"})
		client := consul.Start(t, consul.Options{Join: server, Host: net.Host("client"), Node: "client"})
		talk(t, server, client)
	})
}

// talk has a service on one agent and its client on the other, or both on one.
func talk(t *testing.T, server, client *consul.Server) {
	address, dial := "127.0.0.1", (&net.Dialer{}).DialContext
	listen := func() (net.Listener, error) { return net.Listen("tcp4", "127.0.0.1:0") }
	if client == nil {
		client = server
	} else {
		address, dial = server.Host().Addr4().String(), client.Host().DialContext
		listen = func() (l net.Listener, err error) {
			err = server.Host().Do(func() error { l, err = net.Listen("tcp4", "127.0.0.1:0"); return err })
			return l, err
		}
	}
	app, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.Close() })
	go echo(app)
	server.Register(t, &api.AgentServiceRegistration{
		Name: "web", Address: address, Port: app.Addr().(*net.TCPAddr).Port,
		Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
			Port:  int(freePort(t)),
			Proxy: &api.AgentServiceConnectProxyConfig{Config: map[string]any{"bind_address": address}},
		}},
	})
	server.StartEnvoy(t, "web", server.ServiceToken(t, "web").SecretID)
	server.Intend(t, "client", "web", api.IntentionActionAllow)
	local := freePort(t)
	client.StartBuiltin(t, consul.Builtin{
		Service: "client", Upstreams: []string{fmt.Sprintf("web:%d", local)},
		Token: server.ServiceToken(t, "client").SecretID,
	})
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), local)
	var got string
	err = testnet.Until(t.Context(), func() error {
		c, err := dial(t.Context(), "tcp", at.String())
		if err != nil {
			return err
		}
		defer c.Close()
		fmt.Fprintln(c, "hello")
		got, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	if err != nil || got != "hello\n" {
		t.Errorf("got %q: %v", got, err)
	}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	port, err := consul.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			line, err := bufio.NewReader(c).ReadString('\n')
			if err == nil {
				_, _ = c.Write([]byte(line))
			}
		}()
	}
}
