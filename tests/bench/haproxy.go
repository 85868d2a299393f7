// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// haproxy is the distribution's HAProxy on both sides, TCP with mutual TLS in
// between.
type haproxy struct{}

const haproxyPath = "/usr/sbin/haproxy"

func (haproxy) name() string { return "haproxy" }

func (haproxy) version(ctx context.Context, _ *site) string {
	out, _ := exec.CommandContext(ctx, haproxyPath, "-v").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	line, _, _ = strings.Cut(line, " - ")
	return line
}

const haproxyConfig = `global
    maxconn %[3]d
    nbthread 2
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    maxconn %[3]d
listen bench
    bind %[1]s
    server peer %[2]s
`

func (haproxy) start(ctx context.Context, s *site) (*instance, error) {
	sides := s.sides()
	binds := [2]string{
		sides[0].listen.String(),
		fmt.Sprintf("%s ssl crt %s ca-file %s verify required", sides[1].listen, s.pki.bundle, s.pki.ca),
	}
	servers := [2]string{
		fmt.Sprintf("%s ssl crt %s ca-file %s verify required verifyhost %s sni str(%s)",
			sides[1].listen, s.pki.bundle, s.pki.ca, peerName, peerName),
		serverOnLoopback(),
	}
	for i := range sides {
		path, err := s.write("haproxy-"+sides[i].host.Name()+".cfg", fmt.Sprintf(haproxyConfig, binds[i], servers[i], s.mostConnections()))
		if err != nil {
			return nil, err
		}
		sides[i].cmd = testnet.Command{Path: haproxyPath, Args: []string{"-db", "-f", path}}
	}
	return startPair(ctx, s, "haproxy", sides)
}
