// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/vm"
	"github.com/meshproxy/meshproxy/tests/workload"
)

const module = "github.com/meshproxy/meshproxy"

// packages are what the machines have beside Debian's own.
var packages = slices.Concat(containerPackages, rpmPackages)

// host is one of the two machines.
type host struct {
	*vm.VM
	other string // the name of the other one
	addr  string
	far   string // the other one's address
}

// site is both.
type site struct {
	a, b    *host
	summary *summary
}

// mesh is the file that both nodes have. What knock dials is in no service.
const mesh = `
nodes:
  - {name: a, address: 10.77.0.1}
  - {name: b, address: 10.77.0.2}
workloads:
  - {name: front, match: [{unit: front.service}, {unit: load.service}, {unit: "dial@*.service"}]}
  - {name: back, match: [{unit: back.service}]}
  - {name: knock, egress: registered-only, match: [{unit: knock.service}]}
  - {name: pod, match: [{unit: pod.service}]}
  - {name: box, match: [{unit: box.service}]}
  - {name: cell, match: [{unit: cell.service}]}
services:
  - name: back-a
    ports: [{port: 80}]
    endpoints: [{node: a, port: 8080, workload: back}]
  - name: back-b
    ports: [{port: 80}]
    endpoints: [{node: b, port: 8080, workload: back}]
  - name: pod
    ports: [{port: 80}]
    endpoints: [{node: a, address: 10.88.0.2, port: 8080, workload: pod}]
  - name: box
    ports: [{port: 80}]
    endpoints: [{node: a, address: 10.89.0.2, port: 8080, workload: box}]
  - name: cell
    ports: [{port: 80}]
    endpoints: [{node: a, address: 10.90.0.2, port: 8080, workload: cell}]
policies:
  - {name: fronts, action: allow, from: [{identity: spiffe://mesh.internal/ns/default/sa/front}], to: [{service: back-a}, {service: back-b}, {service: pod}, {service: box}, {service: cell}]}
  - name: contained
    action: allow
    from:
      - {identity: spiffe://mesh.internal/ns/default/sa/pod}
      - {identity: spiffe://mesh.internal/ns/default/sa/box}
      - {identity: spiffe://mesh.internal/ns/default/sa/cell}
    to: [{service: back-b}]
authorization: {default: deny}
`

const config = `
node: {name: %s, address: %s, trustDomain: mesh.internal}
identity: {provider: embedded}
sources: {static: {files: [mesh.yaml]}}
log: {level: info}
# An emulated start takes longer than another node waits for an endpoint.
defaults: {connectTimeout: 1m}
drainTimeout: 3s
upgradeTimeout: 10m
restartTimeout: 5s
`

// unit is a service without anything that orders it after the mesh: enrolling
// needs no change of a unit.
func unit(name, args string) vm.File {
	return vm.File{Path: "/etc/systemd/system/" + name + ".service", Content: fmt.Sprintf(`[Unit]
Description=%[1]s of the test
# Its address may come later than it does.
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/bin/workload %[2]s
StandardOutput=append:/var/log/%[1]s.log
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
`, name, args)}
}

// newSite boots the machines, with the applications running and without the
// product.
func newSite(t *testing.T) *site {
	t.Helper()
	workload, err := vm.Build(context.Background(), module+"/tests/workload/cmd/workload")
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca")
	if err := meshnode.InitCA(ca); err != nil {
		t.Fatal(err)
	}
	common := append(product(t), vm.File{Path: "/usr/local/bin/workload", From: workload, Mode: 0o755})
	entries, err := os.ReadDir(ca)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		common = append(common, vm.File{Path: "/srv/ca/" + e.Name(), From: filepath.Join(ca, e.Name()), Mode: 0o600})
	}
	s := &site{
		summary: newSummary(t),
		a:       &host{other: "b", addr: "10.77.0.1", far: "10.77.0.2"},
		b:       &host{other: "a", addr: "10.77.0.2", far: "10.77.0.1"},
	}
	lan := vm.NewSwitch(t)
	var options []vm.Options
	for name, h := range map[string]*host{"a": s.a, "b": s.b} {
		files := append([]vm.File{
			{Path: "/srv/etc/meshproxy.yaml", Content: fmt.Sprintf(config, name, h.addr), Mode: 0o640},
			{Path: "/srv/etc/mesh.yaml", Content: mesh, Mode: 0o640},
			// Names are asked for while no process answers, too.
			{Path: "/etc/resolv.conf", Content: "nameserver 192.0.2.53\noptions timeout:120 attempts:5\n"},
			unit("back", "serve -name back-"+name+" -tcp "+h.addr+":8080"),
			unit("front", "call -tcp back-"+h.other+":80 -rate 2 -timeout 1m"),
			unit("load", "call -fresh -tcp back-"+h.other+":80 -rate 5 -timeout 10m"),
			unit("knock", "call -fresh -tcp "+h.far+":7777 -rate 4 -timeout 2s"),
			unit("stranger", "call -fresh -tcp "+h.far+":8080 -rate 2 -timeout 2s"),
			unit("door", "serve -name nobody -report-accepted -tcp "+h.addr+":7777"),
		}, common...)
		if name == "a" {
			files = append(files, containers...)
		}
		options = append(options, vm.Options{
			Name: name, Switch: lan, Memory: 768, Files: files, Packages: packages,
			Addresses: []string{h.addr + "/24", "fd00:77::" + h.addr[len(h.addr)-1:] + "/64"},
		})
	}
	for i, machine := range vm.BootAll(t, options...) {
		if options[i].Name == "a" {
			s.a.VM = machine
		} else {
			s.b.VM = machine
		}
	}
	return s
}

// both does the same on each machine, at the same time: each waits for the
// emulation most of the time, and there are two processors.
func (s *site) both(t *testing.T, do func(t *testing.T, h *host)) {
	t.Helper()
	done := make(chan bool)
	for _, h := range []*host{s.a, s.b} {
		go func() {
			defer func() { done <- true }() // Goexit of a Fatal included
			do(t, h)
		}()
	}
	<-done
	<-done
	if t.Failed() {
		t.FailNow()
	}
}

// answered waits until calls of a unit succeed, and none fails any more.
func (h *host) answered(t *testing.T, units ...string) {
	t.Helper()
	for _, u := range units {
		// The report that is being written when this begins does not count.
		h.Eventually(t, u+" calls across", `
			log=/var/log/`+u+`.log; n=$(wc -l <$log)
			while [ "$(wc -l <$log)" -lt $((n + 2)) ]; do sleep 0.1; done
			last=$(tail -n 1 $log); echo "$last"
			[[ $last == *'"errors":0,'* && $last != *'"requests":0,'* ]]`)
	}
}

// calls sums up the calls of a unit since its log was cut.
func (h *host) calls(t *testing.T, unit string) workload.Stats {
	t.Helper()
	var sum workload.Stats
	for line := range strings.Lines(h.Shell(t, `grep '"event":"stats"' /var/log/`+unit+".log")) {
		var s workload.Stats
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("%s of %s reports %q: %v", unit, h.Name(), line, err)
		}
		sum.Requests += s.Requests
		sum.Errors += s.Errors
		sum.Max = max(sum.Max, s.Max)
		if s.Error != "" {
			sum.Error = s.Error
		}
	}
	return sum
}

// configure changes a key of the node's configuration, and reloads it.
func (h *host) configure(t *testing.T, key, value string) {
	t.Helper()
	h.Shell(t, fmt.Sprintf("sed -i 's/^%[1]s: .*/%[1]s: %[2]s/' /etc/meshproxy/meshproxy.yaml && systemctl reload meshproxy", key, value))
}

// dial makes one connection as front does, and returns what came of it.
func (h *host) dial(t *testing.T, address string) vm.Result {
	t.Helper()
	return h.Try(t, "sh", "-c", h.dialling(t, address))
}

// dialling is the command for dial.
func (h *host) dialling(t *testing.T, address string) string {
	return "systemd-run --quiet --wait --pipe --collect --unit=dial@" + strings.Map(unitName, t.Name()) +
		" /usr/local/bin/workload dial-once -send hello -timeout 2m -address " + address
}

func unitName(r rune) rune {
	if r == '/' || r == ' ' {
		return '-'
	}
	return r
}

// holes are the connections that were made outside the mesh, both ways.
func (h *host) holes(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(h.Shell(t, `
		grep -c '"event":"accepted"' /var/log/door.log || true
		grep '"event":"stats"' /var/log/stranger.log | grep -vc '"requests":0,' || true`))
}

// pid is the main process of the node, 0 when there is none.
func (h *host) pid(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(h.Run(t, "systemctl", "show", "-P", "MainPID", "meshproxy"))
}

// restarted waits until systemd has another process that is ready.
func (h *host) restarted(t *testing.T, before string) {
	t.Helper()
	h.Eventually(t, "a new process is ready", `
		systemctl show -P MainPID -P SubState -P ActiveState meshproxy | xargs
		[ "$(systemctl show -P MainPID meshproxy)" != `+before+` ]
		[ "$(systemctl show -P SubState meshproxy)" = running ]`)
}
