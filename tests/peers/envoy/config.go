// SPDX-License-Identifier: Apache-2.0

package envoy

import (
	_ "embed" // the templates
	"fmt"
	"net/netip"
	"strings"
	"text/template"

	"github.com/meshproxy/meshproxy/tests/peers/credentials"
)

var (
	//go:embed client.yaml.tmpl
	clientText string
	//go:embed server.yaml.tmpl
	serverText string
)

// admin is where each Envoy's admin interface is: on loopback of its namespace.
var admin = netip.MustParseAddrPort("127.0.0.1:9901")

// Client is an Envoy that opens tunnels to a node.
type Client struct {
	Node    netip.AddrPort // its listener for tunnels
	Files   credentials.Files
	Tunnels []Tunnel
}

// Tunnel is a listener of a Client, and what becomes of its connections. Each
// has a pool of its own.
type Tunnel struct {
	Listen netip.AddrPort
	// Authority is asked for. When it is empty the listener takes CONNECT of
	// HTTP/1.1 and passes on request and answer.
	Authority string
	// ServerName is sent as SNI; empty sends none.
	ServerName string
	// Identity is the one that is accepted.
	Identity string
	// Forwarded adds a header that names the listener's client.
	Forwarded bool
}

// Config is what the process is started with.
func (c Client) Config() (string, error) {
	return fill(clientText, struct {
		Client
		Admin netip.AddrPort
	}{c, admin})
}

// Server is an Envoy that takes tunnels.
type Server struct {
	Listen netip.AddrPort
	Files  credentials.Files
	Client string // the one identity that may come in
	// MaxStreams that a connection may have at once.
	MaxStreams int
	Routes     []Route
}

// Route says what an authority stands for.
type Route struct {
	Authority string
	App       netip.AddrPort
	// Status is the answer, instead of connecting to App.
	Status int
}

// Config is what the process is started with.
func (s Server) Config() (string, error) {
	return fill(serverText, struct {
		Server
		Admin netip.AddrPort
	}{s, admin})
}

func fill(text string, with any) (string, error) {
	tmpl, err := template.New("envoy").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", fmt.Errorf("parse template: %w", err)
	}
	var b strings.Builder
	if err := tmpl.Execute(&b, with); err != nil {
		return "", fmt.Errorf("fill template: %w", err)
	}
	return b.String(), nil
}
