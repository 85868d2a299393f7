// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/tests/vm"
)

// containerPackages are what runs containers.
var containerPackages = []string{"podman", "netavark", "iptables", "systemd-container"}

// containers are three kinds of network namespaces that services have on a
// Debian machine, each a unit that is enrolled as any other is: a Podman
// container, a systemd-nspawn container, and a unit with PrivateNetwork=.
var containers = []vm.File{
	// Podman's own units have nothing to do here, and take long at boot.
	{Path: "/etc/systemd/system/podman-auto-update.service", Link: "/dev/null"},
	{Path: "/etc/systemd/system/podman-auto-update.timer", Link: "/dev/null"},
	{Path: "/etc/systemd/system/podman-restart.service", Link: "/dev/null"},
	{Path: "/etc/containers/containers.conf", Content: "[network]\nnetwork_backend = \"netavark\"\n"},
	{Path: "/etc/systemd/system/pod.service", Content: `[Unit]
Description=pod of the test
[Service]
Delegate=yes
ExecStart=/usr/bin/podman run --name pod --replace --rm --cgroups=split --ip 10.88.0.2 localhost/app /workload serve -name pod -tcp 0.0.0.0:8080
ExecStop=/usr/bin/podman stop -t 1 pod
`},
	{Path: "/etc/systemd/system/box.service", Content: `[Unit]
Description=box of the test
[Service]
Delegate=yes
ExecStart=/usr/bin/systemd-nspawn --quiet --keep-unit --register=no --machine=box --directory=/ --volatile=yes --bind-ro=/etc/resolv.conf --network-veth --console=pipe /usr/local/bin/box
StandardOutput=append:/var/log/box.log
KillMode=mixed
`},
	{Path: "/etc/systemd/network/20-box.network", Content: "[Match]\nName=ve-box\n[Network]\nAddress=10.89.0.1/24\n"},
	{Path: "/usr/local/bin/box", Mode: 0o755, Content: `#!/bin/sh -e
ip address add 10.89.0.2/24 dev host0
ip link set host0 up
ip route add default via 10.89.0.1
exec /usr/local/bin/both box
`},
	{Path: "/etc/systemd/system/cell.service", Content: `[Unit]
Description=cell of the test
[Service]
PrivateNetwork=yes
ExecStartPre=/usr/sbin/ip address add 10.90.0.2/32 dev lo
ExecStart=/usr/local/bin/both cell
StandardOutput=append:/var/log/cell.log
`},
	{Path: "/usr/local/bin/both", Mode: 0o755, Content: `#!/bin/sh -e
/usr/local/bin/workload call -fresh -tcp back-b:80 -rate 1 -timeout 30s &
exec /usr/local/bin/workload serve -name "$1" -tcp 0.0.0.0:8080
`},
}

// testContainers: what runs in a namespace of its own dials into the mesh and is
// dialled from it, and takes nothing from elsewhere.
func testContainers(t *testing.T, s *site) {
	s.a.Shell(t, `
		mkdir -p /srv/image
		cp /usr/local/bin/workload /srv/image/workload
		tar -C /srv/image -c . | podman import --quiet - localhost/app
		systemctl start pod box cell`)
	s.a.Eventually(t, "the container runs", "podman exec pod /workload dial-once -address 127.0.0.1:8080 -send hello")

	s.a.answered(t, "box", "cell")
	s.a.Eventually(t, "pod calls across", `podman exec pod /workload dial-once -address back-b:80 -send hello -timeout 30s | tee /dev/stderr | grep '\\"server\\":\\"back-b\\"'`)
	for name, address := range map[string]string{"pod": "10.88.0.2", "box": "10.89.0.2", "cell": "10.90.0.2"} {
		// The first one may come before the node has found the namespace.
		out := s.b.Eventually(t, name+" is dialled", s.b.dialling(t, name+":80"))
		if !strings.Contains(out, `\"server\":\"`+name+`\"`) {
			t.Errorf("%s answered b's front with %s", name, out)
		}
		if !strings.Contains(out, `\"peer\":\"10.77.0.2:`) {
			t.Errorf("%s took b's front for another: %s", name, out)
		}
		if name == "cell" {
			continue // no way leads there but the mesh
		}
		if r := s.a.Try(t, "/usr/local/bin/workload", "dial-once", "-address", address+":8080", "-send", "hello"); r.Code == 0 {
			t.Errorf("%s takes plaintext from its machine: %s", name, r.Stdout)
		}
	}
	s.a.Shell(t, "systemctl stop pod box cell; podman rmi --force localhost/app")
	s.a.Eventually(t, "the node has let go of their namespaces", `[ "$(meshproxy status | tee /dev/stderr | grep -c ' 127.0.0.1:15001 ')" = 1 ]`)
}
