// SPDX-License-Identifier: Apache-2.0

package meshnode

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

func TestConfigIsValid(t *testing.T) {
	topology, err := testnet.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer topology.Close()
	ca, mesh := filepath.Join(topology.Dir(), "ca"), filepath.Join(topology.Dir(), "mesh.yaml")
	if err := InitCA(ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mesh, []byte("nodes: [{name: a, address: 10.77.0.1}, {name: b, address: 10.77.0.2}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := topology.Host("a")
	path, err := WriteConfig(Options{Host: a, MeshFile: mesh, CADir: ca, Extra: "defaults: {egress: passthrough}\n"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node.Name != "a" || c.Node.Address != a.Addr4() || c.Cgroup.Root != a.Cgroup() || c.BPF.FS != a.BPFFS() {
		t.Errorf("configuration: %+v", c)
	}
	if c.Socket() != filepath.Join(a.Dir(), "run", "admin.sock") {
		t.Errorf("socket: %s", c.Socket())
	}
	if got := CgroupPath(topology, a.Namespace, "web"); !strings.HasPrefix(got, "/meshproxy-testnet-") || !strings.HasSuffix(got, "/a/web") {
		t.Errorf("cgroup path: %s", got)
	}
}
