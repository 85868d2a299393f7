// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// managementToken is the same everywhere: nothing here is worth a secret.
const managementToken = "4d534850-524f-5859-9000-000000000001"

// settings are those of an agent that do not depend on its role.
type settings struct {
	NodeName          string         `json:"node_name,omitempty"`
	Datacenter        string         `json:"datacenter"`
	DataDir           string         `json:"data_dir,omitempty"`
	BindAddr          netip.Addr     `json:"bind_addr"`
	ClientAddr        netip.Addr     `json:"client_addr"`
	Ports             ports          `json:"ports"`
	Server            bool           `json:"server"`
	BootstrapExpect   int            `json:"bootstrap_expect,omitempty"`
	RetryJoin         []string       `json:"retry_join,omitempty"`
	RetryInterval     string         `json:"retry_interval,omitempty"`
	Connect           map[string]any `json:"connect"`
	Performance       map[string]any `json:"performance"`
	ACL               *acl           `json:"acl,omitempty"`
	LeaveOnTerminate  bool           `json:"leave_on_terminate"`
	DisableUpdates    bool           `json:"disable_update_check"`
	EnableScripts     bool           `json:"enable_local_script_checks"`
	LogLevel          string         `json:"log_level"`
	CheckUpdateEvery  string         `json:"check_update_interval"`
	EnableCentralConf bool           `json:"enable_central_service_config"`
}

type acl struct {
	Enabled       bool              `json:"enabled"`
	DefaultPolicy string            `json:"default_policy"`
	Tokens        map[string]string `json:"tokens"`
}

func (s *Server) configuration() settings {
	o := s.options
	c := settings{
		NodeName: o.Node, Datacenter: cmp.Or(o.Datacenter, "dc1"),
		BindAddr: net4(o.Host), ClientAddr: loopback, Ports: s.ports,
		Server:      o.Join == nil,
		Connect:     map[string]any{"enabled": true},
		Performance: map[string]any{"raft_multiplier": 1},
		// A stop is one to come back from: the node stays in the catalog.
		LeaveOnTerminate: false,
		DisableUpdates:   true, EnableScripts: true, LogLevel: "INFO",
		CheckUpdateEvery: "0s", EnableCentralConf: true,
	}
	if !o.Dev {
		c.DataDir = filepath.Join(o.Dir, "data")
	}
	if s.peers != nil {
		c.RetryJoin, c.RetryInterval = s.joinAddresses(), "1s"
	}
	if c.Server && !o.Dev {
		c.BootstrapExpect = max(1, len(s.peers))
	}
	if s.ManagementToken != "" {
		c.ACL = &acl{Enabled: true, DefaultPolicy: "deny", Tokens: map[string]string{"agent": s.ManagementToken}}
		if c.Server {
			c.ACL.Tokens["initial_management"] = s.ManagementToken
		}
	}
	return c
}

// net4 is the address by which other agents reach one there.
func net4(host *testnet.Host) netip.Addr {
	if host == nil {
		return loopback
	}
	return host.Addr4()
}

// write writes text as it is and everything else as JSON.
func write(path string, content any) error {
	text, ok := content.(string)
	if !ok {
		raw, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return fmt.Errorf("encode %s: %w", path, err)
		}
		text = string(raw)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure consul: %w", err)
	}
	return nil
}
