// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// The users of the units. No account is needed to run as one.
const (
	nodeUser   = 61357
	helperUser = 61358
)

// The capabilities of the units: systemd/meshproxy.service and
// systemd/meshproxy-netns.service.
var (
	nodeCapabilities   = []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON}
	helperCapabilities = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE}
)

var capabilityNames = map[uintptr]string{
	unix.CAP_BPF: "CAP_BPF", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_PERFMON: "CAP_PERFMON",
	unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE",
}

func without(all []uintptr, one uintptr) []uintptr {
	return slices.DeleteFunc(slices.Clone(all), func(c uintptr) bool { return c == one })
}

// startAsService runs a node and its helper as the units do: each as a user of
// its own, with the few capabilities that it needs.
func (l *lab) startAsService(host string, ofHelper []uintptr, extra ...string) *meshnode.Node {
	l.Helper()
	h := l.net.Host(host)
	socket := filepath.Join(h.Dir(), "helper", "netns.sock")
	if err := os.Mkdir(filepath.Dir(socket), 0o755); err != nil {
		l.Fatal(err)
	}
	if err := os.Chown(filepath.Dir(socket), helperUser, helperUser); err != nil {
		l.Fatal(err)
	}
	o := meshnode.Options{
		Host: h, MeshFile: l.meshFile, CADir: l.caDir,
		UID: nodeUser, Capabilities: nodeCapabilities, Extra: strings.Join(append(extra, "netnsHelper: "+socket+"\n"), "\n"),
	}
	config, err := meshnode.WriteConfig(o)
	if err != nil {
		l.Fatal(err)
	}
	helper, err := h.Start(testnet.Command{
		Name: "netns-helper", Path: programs.meshproxy, Cgroup: "meshproxy-netns.service",
		Args: []string{"netns-helper", "--config", config, "--listen", socket, "--user", strconv.Itoa(nodeUser)},
		// It reads the configuration by the group.
		UID: helperUser, GID: nodeUser, Capabilities: ofHelper,
	})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if l.Failed() {
			l.Logf("helper of %s:\n%s", host, helper.Stderr().Tail(4000))
		}
	})
	l.eventually("the helper listens", func() error { _, err := os.Stat(socket); return err })
	return l.startAs(host, o)
}

// TestPrivileges: a node works with the capabilities of its unit.
func TestPrivileges(t *testing.T) {
	l := newLab(t, limitMesh, "a", "b")
	a, b := l.net.Host("a"), l.net.Host("b")
	l.serve(a, "near", "-name", "near", "-tcp", "10.77.0.1:8080")
	for _, host := range []string{"a", "b"} {
		l.startAs(host, meshnode.Options{UID: nodeUser, Capabilities: nodeCapabilities})
	}
	l.serve(b, "far", "-name", "far", "-tcp", "10.77.0.2:8080")
	l.works(a, "other", "near:80")
	l.works(a, "other", "far:80")
	// A restart takes over what is in the kernel.
	if err := l.nodes["a"].Stop(l.ctx()); err != nil {
		t.Fatal(err)
	}
	l.startAs("a", meshnode.Options{UID: nodeUser, Capabilities: nodeCapabilities})
	l.works(a, "other", "near:80")
	l.works(a, "other", "far:80")
}

// TestPrivilegesAreLeast: without any one of them the kernel refuses what a node
// needs, and it names the one that is missing.
func TestPrivilegesAreLeast(t *testing.T) {
	l := newLab(t, limitMesh, "a", "b")
	for _, missing := range nodeCapabilities {
		t.Run(capabilityNames[missing], func(t *testing.T) {
			_, err := meshnode.Start(l.in(t).ctx(), meshnode.Options{
				Host: l.net.Host("a"), MeshFile: l.meshFile, CADir: l.caDir, Program: []string{programs.meshproxy},
				UID: nodeUser, Capabilities: without(nodeCapabilities, missing),
			})
			if err == nil {
				t.Fatalf("the node runs without")
			}
			if !strings.Contains(err.Error(), "meshproxy: start capture: without "+capabilityNames[missing]+": ") {
				t.Errorf("it says: %v", err)
			}
			t.Log(err)
		})
	}
}

// TestHelperPrivilegesAreLeast: without any one of the helper's, workloads in
// namespaces of their own are refused, and the node says why; all else works.
func TestHelperPrivilegesAreLeast(t *testing.T) {
	for missing, says := range map[uintptr]string{
		unix.CAP_SYS_ADMIN:  "enter network namespace: operation not permitted",
		unix.CAP_SYS_PTRACE: "look at process: permission denied",
	} {
		t.Run(capabilityNames[missing], func(t *testing.T) {
			l := newLab(t, limitMesh, "a", "b")
			box, err := l.net.Host("a").Container("near")
			if err != nil {
				t.Fatal(err)
			}
			// Of another user than the helper's, as applications are.
			l.serveAs(box, "", 61359, "-name", "near", "-tcp", "0.0.0.0:8080")
			n := l.startAsService("a", without(helperCapabilities, missing))
			l.logged(n, "level=WARN", "workload", says)
			if d := l.dial(box, "", "-address", "10.77.0.1:8080", "-send", "hello"); d.OK {
				t.Error("a connection got past the mesh")
			}
		})
	}
}
