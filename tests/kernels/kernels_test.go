// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/sockmap/probe"
	"github.com/meshproxy/meshproxy/tests/vm"
)

// kernel says what is expected of one.
type kernel struct {
	version string
	// lacks are the findings of check that are not ok.
	lacks []string
	// splices says that a node finds splicing safe there.
	splices bool
}

var kernels = []kernel{
	{
		version: "5.10",
		lacks: []string{
			"helper bpf_set_retval in cgroup", "helper bpf_skc_to_mptcp_sock in cgroup",
			"field ingress_ifindex of sk_lookup", "option SO_BINDTOIFINDEX in cgroup",
			"kfunc bpf_rdonly_cast", "kfunc bpf_cast_to_kern_ctx", "receiver's charge in sk_msg", "FIONREAD of redirected data", "one queue of sk_msg and TCP",
		},
	},
	{
		version: "6.1",
		lacks: []string{
			"kfunc bpf_rdonly_cast", "kfunc bpf_cast_to_kern_ctx", "FIONREAD of redirected data", "one queue of sk_msg and TCP",
		},
	},
	{version: "6.12", splices: true},
	{version: "7.2", splices: true},
}

// programTests are those of package sockmap that show that programs load,
// attach, capture, guard, are replaced and go; the rest concerns what no kernel
// changes, and takes long on an emulated processor.
var programTests = []string{
	"TestOutbound", "TestOutboundRefuses", "TestOutboundLeavesAlone", "TestUpstreams", "TestWorkloadByUser",
	"TestInboundStrict", "TestInboundPermissive", "TestInboundChanges", "TestTrueSource", "TestIPv4ServerOfIPv6Client",
	"TestDNS", "TestDNSWithoutProxy", "TestFastOpen", "TestConnectAgain", "TestGuard", "TestAdopt", "TestContainer",
	"TestFlowsFull", "TestCongestionChosen", "TestCongestionOutside", "TestUpgrade", "TestOwnerKilled", "TestLeave",
	"TestSwitchSteered",
}

// nodeTests run nodes: both families, both directions, what is refused and why;
// and nodes that have the units' capabilities and no other, and each of them but
// one.
var nodeTests = []string{
	"TestPaths", "TestAuthorization", "TestInboundModes", "TestCrash", "TestLeave",
	"TestPrivileges", "TestPrivilegesAreLeast", "TestHelperPrivilegesAreLeast",
}

// spliceTests are those of a node where it splices, and queueTests those of what
// splicing needs of the kernel's queues.
var (
	spliceTests = []string{"TestSpliced"}
	queueTests  = []string{"TestSelfTest", "TestHazards", "TestShortRead", "TestShortReads", "TestStallHeals", "TestFirstConnection", "TestReadsBySplice"}
)

// TestKernels boots each kernel, or that of the variable KERNEL.
func TestKernels(t *testing.T) {
	only := os.Getenv("KERNEL")
	for _, k := range kernels {
		if only != "" && only != k.version {
			continue
		}
		t.Run(k.version, func(t *testing.T) { run(t, k) })
	}
}

const module = "github.com/meshproxy/meshproxy"

// dir is where programs are in the machine.
const dir = "/srv/test/"

// environment is that of the tests in the machine. An emulated processor may keep
// a node from turning for seconds, which would count as a proxy that hangs.
var environment = []string{"E2E_PROGRAMS=" + dir, "MESHPROXY_BPF_PROXY_TIMEOUT=30s"}

func run(t *testing.T, k kernel) {
	machine := vm.Boot(t, vm.Options{Kernel: k.version, Memory: 768, Files: programs(t)})
	release := strings.TrimSpace(machine.Run(t, "uname", "-r"))
	t.Logf("kernel %s", release)

	t.Run("check", func(t *testing.T) { check(t, machine, k) })
	t.Run("programs", func(t *testing.T) {
		names := programTests
		if k.splices {
			names = slices.Concat(programTests, queueTests)
		}
		tests(t, machine, "sockmap.test", names)
	})
	t.Run("nodes", func(t *testing.T) {
		names := nodeTests
		if k.splices {
			names = slices.Concat(nodeTests, spliceTests)
		}
		tests(t, machine, "e2e.test", names)
	})
	t.Run("splicing", func(t *testing.T) { splicing(t, machine, k) })
	t.Run("nothing is left", func(t *testing.T) {
		if left := machine.Shell(t, "bpftool prog show | grep -E 'cgroup_|sock_ops|sk_lookup|raw_tracepoint' | grep -v 'name sd_' || true"); left != "" {
			t.Errorf("programs are left:\n%s", left)
		}
	})
}

func programs(t *testing.T) []vm.File {
	t.Helper()
	var files []vm.File
	add := func(name, path string, err error) {
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, vm.File{Path: dir + name, From: path, Mode: 0o755})
	}
	ctx := context.Background()
	for name, pkg := range map[string]string{"meshproxy": module, "workload": module + "/tests/workload/cmd/workload"} {
		path, err := vm.Build(ctx, pkg)
		add(name, path, err)
	}
	for name, pkg := range map[string]string{"sockmap.test": module + "/sockmap", "e2e.test": module + "/tests/e2e"} {
		path, err := vm.BuildTest(ctx, pkg)
		add(name, path, err)
	}
	return files
}

// check compares what the product says of the kernel with what is known of it.
func check(t *testing.T, machine *vm.VM, k kernel) {
	r := machine.Try(t, dir+"meshproxy", "check", "-o", "json")
	var report probe.Report
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatalf("%v: %s%s", err, r.Stdout, r.Stderr)
	}
	if r.Code != 0 {
		t.Errorf("exit status %d", r.Code)
	}
	var lacks []string
	for _, f := range report.Findings {
		if f.Status != probe.StatusOK {
			lacks = append(lacks, f.Name)
			t.Logf("%s: %s: %s %s", f.Status, f.Name, f.Detail, f.Consequence)
			if f.Consequence == "" {
				t.Errorf("nothing is said of what lacking %s means", f.Name)
			}
		}
	}
	if !slices.Equal(lacks, k.lacks) {
		t.Errorf("check finds lacking %q, want %q", lacks, k.lacks)
	}
}

const splicingConfig = `
node: {name: a, trustDomain: mesh.internal}
identity: {provider: embedded}
splicing: auto
authorization: {default: allow}
workloads: [{name: app, match: [{unit: app.service}]}]
`

// splicing runs a node that may splice: it does, or says why it does not.
func splicing(t *testing.T, machine *vm.VM, k kernel) {
	const config = dir + "splicing.yaml"
	machine.Put(t, vm.File{Path: config, Content: splicingConfig})
	machine.Shell(t, fmt.Sprintf(`
		%[1]smeshproxy ca init --config %[2]s
		systemd-run --unit=node %[1]smeshproxy run --config %[2]s`, dir, config))
	const ask = dir + "meshproxy status --config " + config + " -o json"
	machine.Eventually(t, "the node is ready", ask+` | tee /dev/stderr | grep '"state": "ready"'`)
	var status api.Status
	if err := json.Unmarshal([]byte(machine.Shell(t, ask)), &status); err != nil {
		t.Fatal(err)
	}
	splice := status.Capture.Splice
	t.Logf("on: %v, reason: %q, accepted: %v", splice.On, splice.Reason, splice.Accepted)
	if splice.On != k.splices {
		t.Errorf("splicing is on: %v; want %v", splice.On, k.splices)
	}
	if !splice.On && splice.Reason == "" {
		t.Error("splicing is off, and nothing says why")
	}
	machine.Shell(t, "systemctl stop node; "+dir+"meshproxy leave --config "+config)
}

// tests runs the tests of a package in the machine.
func tests(t *testing.T, machine *vm.VM, program string, names []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 16*time.Minute)
	defer cancel()
	args := []string{
		// As the unit has it: 5.10 counts maps as locked memory.
		"prlimit", "--memlock=unlimited:unlimited",
		dir + program, "-test.v", "-test.run", "^(" + strings.Join(names, "|") + ")$",
		// Side by side they only wait for each other, some for too long.
		"-test.parallel", "1", "-test.timeout", "15m",
	}
	r, err := machine.Exec(ctx, vm.Command{Args: args, Dir: "/tmp", Env: environment})
	log := keep(t, program+".log", r.Stdout+r.Stderr)
	passed := strings.Count(r.Stdout, "--- PASS")
	t.Logf("%d passed: %s", passed, log)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Errorf("exit status %d, failed:\n%s", r.Code, failures(r.Stdout+r.Stderr))
	}
	for _, name := range names {
		if !strings.Contains(r.Stdout, "--- PASS: "+name+" ") {
			t.Errorf("%s has not passed", name)
		}
	}
}

// keep writes a log beside those of the machine.
func keep(t *testing.T, name, text string) string {
	t.Helper()
	base, err := vm.LogDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(base, strings.ReplaceAll(t.Name(), "/", "-")+"-"+name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// failures are the lines that say what went wrong.
func failures(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		text := strings.TrimSpace(line)
		if strings.HasPrefix(text, "--- FAIL") || strings.Contains(text, "_test.go:") || strings.HasPrefix(text, "panic:") {
			fmt.Fprint(&b, line)
		}
	}
	if b.Len() == 0 {
		return log
	}
	return b.String()
}
