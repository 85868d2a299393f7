// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
	"github.com/meshproxy/meshproxy/tests/vm"
)

// management is the token that the agent begins with.
const management = "5f7a3f0e-35a5-4f1c-9d5a-8d2f0a2c9d11"

// consulFiles are a machine as docs/consul.md wants one: an agent under systemd,
// with the unit of HashiCorp's packages, ACLs that deny, and two services that
// know nothing of a mesh.
var consulFiles = []vm.File{
	{Path: "/etc/systemd/system/consul.service", Content: `[Unit]
Description="HashiCorp Consul - A service mesh solution"
Requires=network-online.target
After=network-online.target
ConditionFileNotEmpty=/etc/consul.d/consul.hcl
[Service]
User=consul
Group=consul
ExecStart=/usr/bin/consul agent -config-dir=/etc/consul.d/
ExecReload=/bin/kill --signal HUP $MAINPID
KillMode=process
KillSignal=SIGTERM
Restart=on-failure
LimitNOFILE=65536
[Install]
WantedBy=multi-user.target
`},
	{Path: "/etc/consul.d/consul.hcl", Content: `
data_dir = "/opt/consul"
server = true
bootstrap_expect = 1
bind_addr = "192.0.2.1"
connect { enabled = true }
disable_update_check = true
acl {
  enabled = true
  default_policy = "deny"
  tokens {
    initial_management = "` + management + `"
    agent = "` + management + `"
  }
}
`},
	{Path: "/etc/consul.d/services.hcl", Content: `
services {
  name = "web"
  port = 8080
  token = "` + management + `"
}
services {
  name = "api"
  port = 8081
  token = "` + management + `"
}
`},
	unit("web", "serve -name web -tcp 0.0.0.0:8080"),
	{Path: "/etc/systemd/system/api.service", Content: `[Service]
ExecStart=/usr/local/bin/api
StandardOutput=append:/var/log/api.log
[Install]
WantedBy=multi-user.target
`},
	{Path: "/usr/local/bin/api", Mode: 0o755, Content: `#!/bin/sh -e
/usr/local/bin/workload call -fresh -tcp web.virtual.consul:80 -rate 1 -timeout 1m &
exec /usr/local/bin/workload serve -name api -tcp 0.0.0.0:8081
`},
	// The administrator is root already.
	{Path: "/usr/local/bin/sudo", Mode: 0o755, Content: "#!/bin/sh\nexec \"$@\"\n"},
	{Path: "/etc/resolv.conf", Content: "nameserver 192.0.2.53\noptions timeout:120 attempts:5\n"},
}

// TestConsulDocument does on a machine what docs/consul.md says, by the words of
// the document.
func TestConsulDocument(t *testing.T) {
	doc := readDocument(t)
	agent, err := consul.Binary(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	workload, err := vm.Build(context.Background(), module+"/tests/workload/cmd/workload")
	if err != nil {
		t.Fatal(err)
	}
	files := append([]vm.File{
		{Path: "/usr/bin/consul", From: agent, Mode: 0o755},
		{Path: "/usr/local/bin/workload", From: workload, Mode: 0o755},
	}, consulFiles...)
	for _, f := range makePackages(t, "meshproxy_1_amd64") {
		if strings.HasSuffix(f.Path, ".deb") {
			f.Path = "/root/" + filepath.Base(f.Path)
			files = append(files, f)
		}
	}
	h := &host{VM: vm.Boot(t, vm.Options{
		Name: "vm1", Switch: vm.NewSwitch(t), Addresses: []string{"192.0.2.1/24"}, Memory: 1024, Files: files, Packages: packages,
	})}
	defer func() {
		if t.Failed() {
			t.Log(h.Try(t, "sh", "-c", "systemctl status meshproxy consul; journalctl -n 60 --no-pager -u meshproxy -u consul; meshproxy status; meshproxy services; tail -n 3 /var/log/*.log").Stdout)
		}
	}()
	const at8500, atSocket = "127.0.0.1:8500", "unix:///run/consul/http.sock"
	administrator := func(address string) string {
		return "cd /root; export CONSUL_HTTP_ADDR=" + address + " CONSUL_HTTP_TOKEN=" + management + "\n"
	}
	const leads = "curl -fsS $socket $at/v1/status/leader | tee /dev/stderr | grep :8300"
	h.Shell(t, `
		useradd --system --no-create-home consul
		install -d -o consul -g consul /opt/consul
		systemctl enable --quiet --now consul web api`)
	h.Eventually(t, "Consul leads", "socket= at="+at8500+"\n"+leads)

	// 1. The policy.
	h.Put(t, vm.File{Path: "/root/meshproxy-vm1.hcl", Content: doc.block(t, "hcl", "meshproxy-vm1.hcl")})
	h.Eventually(t, "ACLs are there", administrator(at8500)+"consul acl policy list")
	h.Shell(t, administrator(at8500)+doc.block(t, "sh", "consul acl policy create"))
	// 2. The package.
	h.Shell(t, administrator(at8500)+doc.command(t, "sudo apt install")+"\n"+doc.command(t, "sudo meshproxy check")+"\n"+doc.command(t, "sudo chgrp meshproxy"))
	h.Put(t, vm.File{Path: dropIns + "/slow.conf", Content: slow})
	// The trap.
	h.Shell(t, administrator(at8500)+doc.block(t, "sh", "unix_sockets"))
	h.Eventually(t, "Consul leads, on its socket", "socket='--unix-socket /run/consul/http.sock' at=http://consul\n"+leads)
	// 3. The configuration.
	h.Put(t, vm.File{Path: "/etc/meshproxy/meshproxy.yaml", Content: doc.block(t, "yaml", "name: vm1"), Mode: 0o640})
	// 4. Start.
	h.Shell(t, doc.command(t, "sudo systemctl enable"))
	for command, shows := range map[string]string{"meshproxy status": "ready", "meshproxy workloads": "api", "meshproxy services": "."} {
		h.Eventually(t, command+" shows it", doc.command(t, command)+" | tee /dev/stderr | grep '"+shows+"'")
	}
	h.Eventually(t, "the node is registered as the proxy", administrator(atSocket)+"consul catalog services | tee /dev/stderr | grep web-sidecar-proxy")

	// ACLs deny, so intentions do.
	const refused, answered = `'"requests":0,"errors":[1-9]'`, `'"requests":[1-9][0-9]*,"errors":0,'`
	said := func(what, pattern string) {
		t.Helper()
		h.Eventually(t, what, `log=/var/log/api.log; n=$(wc -l <$log)
			while [ "$(wc -l <$log)" -lt $((n + 2)) ]; do sleep 0.1; done
			tail -n 1 $log | tee /dev/stderr | grep `+pattern)
	}
	said("api is refused", refused)
	h.Shell(t, administrator(atSocket)+"consul intention create -allow api web")
	said("api calls web", answered)
	// Both start at boot, in whatever order: what the node knew is in force at once.
	h.Reboot(t)
	said("api calls web after a reboot", answered)
	h.Eventually(t, "Consul answers after a reboot", administrator(atSocket)+"consul intention list | tee /dev/stderr | grep api")
	h.Shell(t, administrator(atSocket)+"consul intention delete api web")
	said("api is refused again", refused)
}

// document is docs/consul.md.
type document string

func readDocument(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "consul.md"))
	if err != nil {
		t.Fatal(err)
	}
	return document(text)
}

// block is that in a language which has a text in it.
func (d document) block(t *testing.T, language, with string) string {
	t.Helper()
	for _, m := range regexp.MustCompile("(?s)\n( *)```"+language+"\n(.*?)\n *```").FindAllStringSubmatch(string(d), -1) {
		if strings.Contains(m[2], with) {
			return strings.ReplaceAll("\n"+m[2], "\n"+m[1], "\n") + "\n"
		}
	}
	t.Fatalf("docs/consul.md has no block in %s with %q", language, with)
	return ""
}

// command is one within a sentence, by how it begins.
func (d document) command(t *testing.T, begins string) string {
	t.Helper()
	m := regexp.MustCompile("`(" + regexp.QuoteMeta(begins) + "[^`]*)`").FindStringSubmatch(string(d))
	if m == nil {
		t.Fatalf("docs/consul.md has no command `%s …`", begins)
	}
	return m[1]
}
