// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/leafcache"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TestRebootWhileConsulIsAway: a machine loses power and boots while Consul is
// away. Its node, which is not root, has snapshot and leaves from disk, and
// connections go both ways. A cache that is spoiled is none.
func TestRebootWhileConsulIsAway(t *testing.T) {
	t.Parallel()
	l := newConsulServices(t)
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "client", "-name", "client", "-tcp", "10.77.0.1:7000")
	l.startServicesOn("b")
	node := l.bootSealed("host")
	both := func() {
		t.Helper()
		l.reaches(a, "client", "127.0.0.1:9191", "far")
		l.reaches(a, "other", "127.0.0.1:9191", "near")
		l.reaches(b, "far", "client.virtual.consul:7000", "client")
	}
	both()
	l.kept("client", "other")

	l.stopConsul()
	l.powerCut(node)
	node = l.bootSealed("host")
	l.logged(node, "leaves from disk", "leaves=2")
	both()

	l.powerCut(node)
	sealed := filepath.Join(meshnode.StateDir(a), "leaves.sealed")
	text, err := os.ReadFile(sealed)
	must(t, err)
	text[len(text)/2] ^= 1
	must(t, os.WriteFile(sealed, text, 0o600))
	node = l.bootSealed("host")
	l.logged(node, "level=WARN", "leaves on disk are of no use", "damaged, or sealed with another key")
	if d := l.dial(a, "client", "-address", "127.0.0.1:9191", "-send", "hello"); d.OK {
		t.Error("a node without a leaf got somewhere")
	}
	l.restartConsul()
	both()
	l.kept("client", "other")

	l.agents["a"].Deregister(t, "other")
	l.kept("client")
	must(t, node.Stop(l.ctx()))
	l.bootSealed("off")
	if left, _ := filepath.Glob(filepath.Join(meshnode.StateDir(a), "leaves.*")); len(left) > 0 {
		t.Errorf("switched off, %q are left", left)
	}
	l.reaches(a, "client", "127.0.0.1:9191", "far")
}

// bootSealed starts the node on a as its unit does: root unseals the key, and the
// node runs as a user of its own.
func (l *consulLab) bootSealed(leafCache string) *meshnode.Node {
	l.Helper()
	o := l.ofServices("a")
	o.Identity = fmt.Sprintf("identity: {provider: consul, leafCache: %q}", leafCache)
	o.Host, o.CADir, o.UID, o.Capabilities = l.net.Host("a"), l.caDir, nodeUser, nodeCapabilities
	config, err := meshnode.WriteConfig(o)
	must(l.T, err)
	_, err = o.Host.Run(l.ctx(), testnet.Command{
		Name: "unseal", Path: programs.meshproxy, Args: []string{"unseal-leaves", "--config", config}, Cgroup: meshnode.Cgroup,
	})
	must(l.T, err)
	return l.startAs("a", o)
}

// powerCut ends a node and leaves what a disk would hold.
func (l *consulLab) powerCut(n *meshnode.Node) {
	l.Helper()
	must(l.T, n.Signal(syscall.SIGKILL))
	_ = n.Wait(l.ctx()) // by that signal
	h := l.net.Host("a")
	must(l.T, sockmap.Leave(sockmap.Options{BPFFS: h.BPFFS(), Instance: h.Name()}))
	must(l.T, os.RemoveAll(filepath.Join(h.Dir(), "run")))
}

// kept waits until these services' leaves, and no others, are kept on a's disk;
// and nothing of them is in the clear.
func (l *consulLab) kept(services ...string) {
	l.Helper()
	dir := meshnode.StateDir(l.net.Host("a"))
	key, err := leafcache.Unseal(l.ctx(), dir, leafcache.WithHost)
	must(l.T, err)
	cache, err := leafcache.Open(dir, key)
	must(l.T, err)
	var want []string
	for _, s := range services {
		want = append(want, l.service(s))
	}
	l.eventually("leaves on disk", func() error {
		text, err := cache.Read()
		if err != nil {
			return err
		}
		var kept struct {
			Leaves []struct {
				Identity string
				Key      []byte
			}
		}
		if err := json.Unmarshal(text, &kept); err != nil {
			return err
		}
		var got []string
		for _, leaf := range kept.Leaves {
			got = append(got, leaf.Identity)
			l.absent(dir, leaf.Key)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("of %q", got)
		}
		return nil
	})
}

// absent: no file below dir holds the text.
func (l *lab) absent(dir string, text []byte) {
	l.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		whole, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // replaced meanwhile
		}
		if strings.Contains(string(whole), string(text)) {
			l.Errorf("%s holds a private key", path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		l.Error(err)
	}
}
