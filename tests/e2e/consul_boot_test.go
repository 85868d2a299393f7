// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/supervisor"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TestBootBeforeConsul: a machine boots for the first time, with all that its node
// knows, its source and its CA, on an agent that starts after it. The boot goes on,
// the status says what is missing, and the node serves as soon as Consul is there.
func TestBootBeforeConsul(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	l.stopConsul()
	a := l.net.Host("a")
	systemd, err := supervisor.New(a.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(systemd.Close)
	n := l.boot("a", systemd)

	l.eventually("the boot goes on", func() error {
		select {
		case <-n.Done():
			t.Fatalf("the node ended: %s", n.Stderr().Tail(2000))
		default:
		}
		if systemd.Ready() == 0 {
			return errors.New("not ready: " + systemd.Status())
		}
		return nil
	})
	l.eventually("status and readiness say what is missing", func() error {
		if s := systemd.Status(); !strings.Contains(s, "no roots from Consul's agent") {
			return fmt.Errorf("status %q", s)
		}
		code, body, err := l.get(a, "http://127.0.0.1:15021/healthz/ready")
		if err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "Consul agent 127.0.0.1:8500 cannot be reached") {
			return fmt.Errorf("readiness: %d %s, %w", code, body, err)
		}
		return nil
	})

	l.restartConsul()
	l.startServicesOn("b")
	l.reaches(a, "client", "127.0.0.1:9191", "far")
	l.eventually("the node is ready", func() error { return l.ready200(a) })
	l.eventually("the status says so", func() error {
		if s := systemd.Status(); !strings.HasPrefix(s, "2 workloads") || strings.Contains(s, ";") {
			return fmt.Errorf("status %q", s)
		}
		return nil
	})
}

// boot starts a node under a service manager, and doesn't wait for anything.
func (l *consulLab) boot(host string, systemd *supervisor.Supervisor) *testnet.Process {
	l.Helper()
	o := l.ofServices(host)
	o.Host, o.CADir = l.net.Host(host), l.caDir
	c, err := systemd.Command()
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	o.Program, o.Env, o.Files = c.Before, c.Env, c.Files
	p := l.run(o)
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("node %s:\n%s%s", host, p.Stderr().Tail(6000), p.Stdout().Tail(6000))
		}
	})
	return p
}
