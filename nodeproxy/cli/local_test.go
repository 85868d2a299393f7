// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/sockmap"
	"github.com/meshproxy/meshproxy/sockmap/probe"
)

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"stauts"}, `unknown command "stauts" for meshproxy; did you mean status?`},
		{[]string{"config", "shwo"}, `unknown command "shwo" for meshproxy config; did you mean show?`},
		{[]string{"status", "extra"}, `unknown command "extra"`},
		{[]string{"status", "--colour"}, "unknown flag: --colour"},
		{[]string{"status", "-o", "yaml"}, `--output "yaml": want table or json`},
		{[]string{"bypass"}, "accepts 1 arg(s), received 0"},
		{[]string{"policy", "test", "--to", "web"}, "--from is required"},
		{[]string{"policy", "test", "--from", "x", "--to", "web", "--port", "70000"}, "invalid argument"},
		{[]string{"config", "show", "--defaults", "--running"}, "exclude each other"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o := command(t, nil, test.args...)
			o.expect(t, ExitUsage, test.says)
			if o.stdout != "" {
				t.Errorf("stdout: %s", o.stdout)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"policy"}, {"run", "--help"}, {"completion", "bash"}} {
		o := command(t, nil, args...)
		o.expect(t, ExitOK)
		if o.stdout == "" || o.stderr != "" {
			t.Errorf("%v: stdout of %d bytes, stderr %q", args, len(o.stdout), o.stderr)
		}
	}
	golden(t, "help", command(t, nil, "help").stdout)
}

func TestVersion(t *testing.T) {
	command(t, nil, "version").expect(t, ExitOK, "meshproxy devel")
	Version = "v1.2.3"
	defer func() { Version = "" }()
	command(t, nil, "version", "-o", "json").expect(t, ExitOK, `"version": "v1.2.3"`, `"platform": "linux/`)
}

func TestConfigValidate(t *testing.T) {
	valid := write(t, "valid.yaml", "node: {name: a}\n")
	command(t, nil, "config", "validate", valid).expect(t, ExitOK, valid+" is valid.")
	command(t, nil, "config", "validate", "--config", valid, "-o", "json").expect(t, ExitOK, `"valid": true`)

	invalid := write(t, "invalid.yaml", "node: {name: a}\nlog: {level: loud}\nnod: 1\n")
	o := command(t, nil, "config", "validate", invalid)
	o.expect(t, ExitUsage, invalid+`:2:14: log.level: found "loud"; allowed: debug, info, warn, error`, invalid+":3:1: ")
	if o.stdout != "" {
		t.Errorf("stdout: %s", o.stdout)
	}
	o = command(t, nil, "config", "validate", invalid, "-o", "json")
	o.expect(t, ExitUsage)
	var v validation
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || v.Valid || len(v.Problems) != 2 || v.Problems[0].Line != 2 || o.stderr != "" {
		t.Errorf("%v: %+v, stderr %q", err, v, o.stderr)
	}
	// The mesh's files are part of it.
	mesh := write(t, "node.yaml", "node: {name: a}\nsources: {static: {files: [gone.yaml]}}\nservices: [{name: web}]\n")
	command(t, nil, "config", "validate", mesh).expect(t, ExitUsage, `gone.yaml: the file does not exist`, `"ports" is missing`)
	command(t, nil, "config", "validate", "--log.level=loud", valid).expect(t, ExitUsage, `--log.level: log.level: found "loud"`)
	command(t, nil, "config", "validate", "/nonexistent").expect(t, ExitUsage, "no such file")
}

func TestConfigShow(t *testing.T) {
	file := write(t, "node.yaml", "node: {name: a, address: 192.0.2.1}\nidentity: {provider: files, files: {bundle: /b, workloads: [{identity: spiffe://x/y, cert: /c, key: /k}]}}\ndns: {upstreams: [1.1.1.1, 8.8.8.8]}\n")
	o := command(t, func(s *Surroundings) { s.Env = []string{"MESHPROXY_LOG_LEVEL=debug"} },
		"config", "show", "--config", file, "--drainTimeout=1m")
	o.expect(t, ExitOK)
	golden(t, "config-show", strings.ReplaceAll(strings.ReplaceAll(o.stdout, file, "FILE"), filepath.Dir(file), "DIR"))
	o = command(t, nil, "config", "show", "--config", file, "-o", "json")
	o.expect(t, ExitOK)
	var settings []config.Setting
	if err := json.Unmarshal([]byte(o.stdout), &settings); err != nil || settings[0].Key != "node.name" || settings[0].Value != "a" {
		t.Errorf("%v: %+v", err, settings)
	}
}

func TestConfigDefaults(t *testing.T) {
	o := command(t, nil, "config", "show", "--defaults")
	o.expect(t, ExitOK)
	golden(t, "config-defaults", o.stdout)
}

func TestCA(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	file := write(t, "node.yaml", "identity: {embedded: {dir: "+dir+"}}\n")
	ca := func(args ...string) outcome {
		return command(t, nil, append([]string{"--config", file, "ca"}, args...)...)
	}
	ca("show").expect(t, ExitFailure, "no CA")
	ca("init").expect(t, ExitOK, "Made a CA for mesh.internal in "+dir, "expires in 3650d0h")
	ca("init").expect(t, ExitFailure, "already has a CA")
	ca("rotate", "--propagation", "1h").expect(t, ExitOK, "It signs from 2026-01-02T13:00:00Z.")
	o := ca("show", "-o", "json")
	o.expect(t, ExitOK)
	var v api.CA
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil || len(v.Roots) != 2 || v.Roots[0].State != "signing" {
		t.Errorf("%v: %+v", err, v)
	}
	ca("show").expect(t, ExitOK, "signing", "next, signs in 1h0m", "mesh.internal")
	files := write(t, "files.yaml", "identity: {provider: files, files: {dir: /x}}\n")
	command(t, nil, "ca", "rotate", "--config", files).expect(t, ExitUsage, "identity.provider is files")
}

func TestLeave(t *testing.T) {
	var left string
	leave := func(err error) func(*Surroundings) {
		return func(s *Surroundings) {
			s.Leave = func(o sockmap.Options) error { left = o.BPFFS + "/" + o.Instance; return err }
		}
	}
	file := write(t, "node.yaml", "bpf: {instance: x}\n")
	command(t, leave(nil), "leave", "--config", file).expect(t, ExitOK, `Nothing of instance "x" is left`)
	if left != "/sys/fs/bpf/x" {
		t.Errorf("left %q", left)
	}
	command(t, leave(errors.New("capture is owned by another process")), "leave", "--config", file).
		expect(t, ExitFailure, "leave the mesh: capture is owned by another process")
}

func TestCheck(t *testing.T) {
	findings := []probe.Finding{
		{Name: "kernel", Status: probe.StatusOK, Required: true, Detail: "6.1.0"},
		{Name: "sk_lookup", Status: probe.StatusWarn, Detail: "no such program type", Consequence: "Inbound connections are not captured.", MinKernel: "5.9"},
		{Name: "cgroup2", Status: probe.StatusFail, Required: true, Detail: "not mounted", Consequence: "Nothing can be captured."},
	}
	var options probe.Options
	check := func(findings []probe.Finding, err error) func(*Surroundings) {
		return func(s *Surroundings) {
			s.Check = func(_ context.Context, o probe.Options) (probe.Report, error) {
				options = o
				return probe.Report{Findings: findings}, err
			}
		}
	}
	o := command(t, check(findings, nil), "check")
	o.expect(t, ExitFailure)
	golden(t, "check", o.stdout)
	command(t, check(findings[:2], nil), "check").expect(t, ExitOK, "A node can run here, with what is said above.")
	command(t, check(findings[:1], nil), "check").expect(t, ExitOK, "A node can run here.")
	command(t, check(findings, nil), "check", "-o", "json").expect(t, ExitFailure, `"minKernel": "5.9"`)
	command(t, check(nil, errors.New("broken")), "check").expect(t, ExitFailure, "broken")
	if options.Running || options.CgroupRoot != "" || len(options.Ports) != len(probe.DefaultPorts()) {
		t.Errorf("options: %+v", options)
	}
	// Nobody answers: so it is after a crash, for as long as the service manager
	// keeps the listeners.
	dir := t.TempDir()
	kept, err := net.Listen("unix", filepath.Join(dir, config.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	file := write(t, "node.yaml", "runDir: "+dir+"\nlisteners: {metrics: off}\ncgroup: {root: /x}\n")
	command(t, check(findings[:1], nil), "check", "--config", file).expect(t, ExitOK)
	if !options.Running || options.CgroupRoot != "/x" || len(options.Ports) != len(probe.DefaultPorts())-1 {
		t.Errorf("options: %+v", options)
	}
}

func TestDemo(t *testing.T) {
	var got []string
	o := command(t, func(s *Surroundings) {
		s.Demo = func(_ context.Context, args []string, _, _ io.Writer) error { got = args; return nil }
	}, "demo", "--keep", "-v")
	o.expect(t, ExitOK)
	if strings.Join(got, " ") != "--keep -v" {
		t.Errorf("arguments: %q", got)
	}
}

// TestRun: the node gets its configuration, and reloads by SIGHUP and when
// the file changes.
func TestRun(t *testing.T) {
	file := write(t, "node.yaml", "node: {name: a}\nlog: {format: json}\n")
	running := func(ctx context.Context, o RunOptions) error {
		if o.Config.Node.Name != "a" || o.Level.Level().String() != "DEBUG" {
			t.Errorf("options: %+v, level %v", o.Config.Node, o.Level)
		}
		o.Log.Info("up")
		wait := func() {
			select {
			case <-o.Reload:
			case <-time.After(time.Minute):
				t.Error("no reload")
			}
		}
		if err := os.WriteFile(file, []byte("node: {name: b}\n"), 0o600); err != nil {
			t.Error(err)
		}
		wait()
		if c, err := o.Load(); err != nil || c.Node.Name != "b" {
			t.Errorf("Load = %+v, %v", c, err)
		}
		return errors.New("the end")
	}
	o := command(t, func(s *Surroundings) { s.Run = running }, "run", "--config", file, "--log.level=debug")
	o.expect(t, ExitFailure, "meshproxy: the end", `"msg":"up"`)
}

func TestHangup(t *testing.T) {
	o := command(t, func(s *Surroundings) {
		s.Run = func(ctx context.Context, o RunOptions) error {
			// Whether the signal is forwarded yet can't be seen from here, so
			// an early one must not end the test.
			stop := ignoreHangups()
			defer stop()
			for {
				if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
					return err
				}
				select {
				case <-o.Hangup:
					return nil
				case <-time.After(10 * time.Millisecond):
				}
			}
		}
	}, "run")
	o.expect(t, ExitOK)
}

func TestRunRefusesInvalid(t *testing.T) {
	run := func(s *Surroundings) {
		s.Run = func(context.Context, RunOptions) error { t.Error("it runs"); return nil }
	}
	invalid := write(t, "node.yaml", "nod: 1\n")
	command(t, run, "run", "--config", invalid).expect(t, ExitUsage, invalid+`:1:1: unknown key "nod"`)
	mesh := write(t, "node.yaml", "services: [{}]\n")
	command(t, run, "run", "--config", mesh).expect(t, ExitUsage, mesh+`:1:12: services[0]: "name" is missing`)
	command(t, run, "run", "--config", "/nonexistent").expect(t, ExitUsage, "no such file")
}

func ignoreHangups() (stop func()) {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGHUP)
	return func() { signal.Stop(ignored) }
}
