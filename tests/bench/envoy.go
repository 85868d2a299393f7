// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// envoy is Envoy on both sides: with a TLS connection per stream, or with the
// streams of one pooled HTTP/2 connection (CONNECT), as meshes use it.
type envoy struct{ connect bool }

func (e envoy) name() string {
	if e.connect {
		return "envoy-h2"
	}
	return "envoy-tls"
}

func (e envoy) version(ctx context.Context, s *site) string {
	out, _ := exec.CommandContext(ctx, s.envoy, "--version").Output()
	// "<path>  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
	_, text, _ := strings.Cut(string(out), "version: ")
	if parts := strings.Split(strings.TrimSpace(text), "/"); len(parts) > 1 {
		return "Envoy " + strings.Join(parts[1:], "/")
	}
	return ""
}

// envoyBase is a listener with one filter, and one cluster. Its limits are
// raised where the defaults (1024 connections, requests) are below what is
// measured.
const envoyBase = `static_resources:
  listeners:
  - address: {socket_address: {address: %[1]s, port_value: %[2]d}}
    filter_chains:
    - filters:
      - %[3]s
      %[4]s
  clusters:
  - name: peer
    type: STATIC
    connect_timeout: 10s
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment:
      cluster_name: peer
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %[5]s, port_value: %[6]d}}}}]}]
    %[7]s
`

const (
	envoyTCP = `{name: envoy.filters.network.tcp_proxy, typed_config: {
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy,
        stat_prefix: bench, cluster: peer, idle_timeout: 0s %s}}`
	// envoyHCM ends CONNECT requests and dials the cluster for each.
	envoyHCM = `{name: envoy.filters.network.http_connection_manager, typed_config: {
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: bench, codec_type: HTTP2, stream_idle_timeout: 0s,
        http2_protocol_options: {allow_connect: true},
        upgrade_configs: [{upgrade_type: CONNECT}],
        route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{
          match: {connect_matcher: {}},
          route: {cluster: peer, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}]}]},
        http_filters: [{name: envoy.filters.http.router, typed_config: {
          "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}`
	envoyTLSParams = `common_tls_context: {
        tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}, %s
        tls_certificates: [{certificate_chain: {filename: "%s"}, private_key: {filename: "%s"}}],
        validation_context: {trusted_ca: {filename: "%s"}, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: "%s"}}]}}`
	envoyHTTP2 = `
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions,
        explicit_http_config: {http2_protocol_options: {allow_connect: true}}}`
)

func (e envoy) start(ctx context.Context, s *site) (*instance, error) {
	sides := s.sides()
	alpn, tunnel, inbound, protocol := "", "", fmt.Sprintf(envoyTCP, ""), ""
	if e.connect {
		alpn = `alpn_protocols: [h2],`
		tunnel = `, tunneling_config: {hostname: "` + serverOnLoopback() + `"}`
		inbound, protocol = envoyHCM, envoyHTTP2
	}
	params := fmt.Sprintf(envoyTLSParams, alpn, s.pki.cert, s.pki.key, s.pki.ca, peerName)
	up := `transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: ` + peerName + `, ` + params + `}}` + protocol
	down := `transport_socket: {name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, ` + params + `}}`
	texts := [2]string{
		fmt.Sprintf(envoyBase, sides[0].listen.Addr(), sides[0].listen.Port(), fmt.Sprintf(envoyTCP, tunnel), "",
			sides[1].listen.Addr(), sides[1].listen.Port(), up),
		fmt.Sprintf(envoyBase, sides[1].listen.Addr(), sides[1].listen.Port(), inbound, down,
			"127.0.0.1", serverPort, ""),
	}
	for i := range sides {
		path, err := s.write(e.name()+"-"+sides[i].host.Name()+".yaml", texts[i])
		if err != nil {
			return nil, err
		}
		sides[i].cmd = testnet.Command{
			Path: s.envoy,
			Args: []string{
				"-c", path, "--concurrency", "2", "--log-level", "error", "--disable-hot-restart",
				"--base-id", strconv.Itoa(i + 1),
			},
		}
	}
	return startPair(ctx, s, e.name(), sides)
}
