// SPDX-License-Identifier: Apache-2.0

// Package meshnode runs `meshproxy run` on a testnet host: it writes the
// node's configuration, starts the process and waits until it is ready. The
// demo, the benchmark and the end-to-end tests use it.
//
// It knows the product as an operator does, by its configuration, its commands
// and its admin socket. What the mesh consists of is the caller's business.
package meshnode

import (
	"bytes"
	"cmp"
	"context"
	_ "embed" // the configuration's template
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/nodeproxy/admin"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/client"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/embedded"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// TrustDomain is the one of every test mesh.
const TrustDomain = "mesh.internal"

// Cgroup is the node's own, below its host's.
const Cgroup = "meshproxy.service"

// readyAddr is where a node says that it is able to serve.
const readyAddr = "127.0.0.1:15021"

//go:embed node.yaml.tmpl
var configText string

// Options say how a node is run.
type Options struct {
	Host *testnet.Host
	// Program is the meshproxy binary with arguments that come first;
	// testnet.Self when the running program is it.
	Program []string
	// MeshFile is the file with nodes, services, workloads and policies, in
	// which a node has the name of its host. NoMeshFile leaves the section sources
	// to Extra.
	MeshFile   string
	NoMeshFile bool
	// CADir has the CA of the mesh, made by InitCA.
	CADir string
	// Identity is a YAML section to use instead of that CA.
	Identity string
	// TrustDomain is another one than that of every test mesh; NoTrustDomain
	// names none.
	TrustDomain   string
	NoTrustDomain bool
	// ProxyTimeout is bpf.proxyTimeout, if it is another one than the default.
	ProxyTimeout time.Duration
	// Extra is YAML that is added to the configuration.
	Extra string
	// Env is added to the process's environment.
	Env []string
	// Files become descriptors 3 and following of the node's process.
	Files []*os.File
	// UID is the user that the node runs as, with Capabilities only; zero is
	// root, who has all.
	UID          uint32
	Capabilities []uintptr
}

// Node is a node that runs.
type Node struct {
	*testnet.Process
	Admin  *client.Client
	config string
	socket string
	opts   Options
}

// InitCA makes the CA of a mesh in dir.
func InitCA(dir string) error {
	td, err := spiffeid.TrustDomainFromString(TrustDomain)
	if err != nil {
		return fmt.Errorf("parse trust domain: %w", err)
	}
	if _, err := embedded.Init(dir, td, embedded.InitOptions{}); err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	return nil
}

// Identity returns the SPIFFE ID of a workload of the default namespace.
func Identity(workload string) string {
	return "spiffe://" + TrustDomain + "/ns/default/sa/" + workload
}

// CgroupPath returns the path within the hierarchy of a cgroup below the
// host's, as selectors name it.
func CgroupPath(t *testnet.Topology, n *testnet.Namespace, below string) string {
	path, err := filepath.Rel(t.CgroupMount(), n.Cgroup(below))
	if err != nil {
		panic(err) // both are absolute, and one begins with the other
	}
	return "/" + path
}

// StateDir is what outlives a restart of the host's node.
func StateDir(h *testnet.Host) string { return filepath.Join(h.Dir(), "lib") }

// configFile is what the template is filled with.
type configFile struct {
	Options
	Name                   string
	Address                netip.Addr
	CgroupRoot             string
	BPFFS, Instance        string
	StateDir, RunDir, Path string
}

// WriteConfig writes the node's configuration and returns its path.
func WriteConfig(o Options) (string, error) {
	c := newConfigFile(o)
	tmpl, err := template.New("node").Option("missingkey=error").Parse(configText)
	if err != nil {
		return "", fmt.Errorf("parse template: %w", err)
	}
	var text bytes.Buffer
	if err := tmpl.Execute(&text, c); err != nil {
		return "", fmt.Errorf("fill template: %w", err)
	}
	if err := os.WriteFile(c.Path, text.Bytes(), 0o640); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	own := []string{c.Path}
	for _, dir := range []string{c.StateDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("make directory: %w", err)
		}
		own = append(own, dir)
	}
	if o.UID == 0 {
		return c.Path, nil
	}
	return c.Path, give(o, own)
}

// give makes the node's user the owner of what systemd makes it the owner of.
func give(o Options, own []string) error {
	pins := filepath.Join(o.Host.BPFFS(), "meshproxy")
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return fmt.Errorf("make directory of pins: %w", err)
	}
	if err := os.Chmod(o.Host.Dir(), 0o755); err != nil {
		return fmt.Errorf("open host directory: %w", err)
	}
	// As a mount namespace does that shows the service nothing else.
	if err := os.Chmod(o.Host.BPFFS(), 0o711); err != nil {
		return fmt.Errorf("open bpffs: %w", err)
	}
	ca, err := filepath.Glob(filepath.Join(o.CADir, "*"))
	if err != nil {
		return err
	}
	own = append(append(own, pins, o.CADir), ca...)
	for _, path := range own {
		if err := os.Chown(path, int(o.UID), int(o.UID)); err != nil {
			return fmt.Errorf("give to the node's user: %w", err)
		}
	}
	return nil
}

func newConfigFile(o Options) configFile {
	h := o.Host
	if o.NoTrustDomain {
		o.TrustDomain = ""
	} else {
		o.TrustDomain = cmp.Or(o.TrustDomain, TrustDomain)
	}
	return configFile{
		Options:    o,
		Name:       h.Name(),
		Address:    h.Addr4(),
		CgroupRoot: h.Cgroup(),
		BPFFS:      h.BPFFS(),
		Instance:   h.Name(),
		StateDir:   StateDir(h),
		RunDir:     filepath.Join(h.Dir(), "run"),
		Path:       filepath.Join(h.Dir(), "meshproxy.yaml"),
	}
}

// Start runs a node and waits until capture is in force, which is when systemd
// hears that it is ready; Consul may be away. When it isn't before the
// context ends, or ends itself, the error has the end of its log.
func Start(ctx context.Context, o Options) (*Node, error) {
	config, err := WriteConfig(o)
	if err != nil {
		return nil, err
	}
	n := &Node{config: config, socket: filepath.Join(o.Host.Dir(), "run", "admin.sock"), opts: o}
	run := n.command("meshproxy", "run", "--config", config)
	run.ExtraFiles = o.Files
	n.Process, err = o.Host.Start(run)
	if err != nil {
		return nil, err
	}
	n.Admin = client.New(n.socket)
	if err := n.waitReady(ctx); err != nil {
		_ = n.Kill()
		return nil, fmt.Errorf("start node %s: %w: %s", o.Host.Name(), err, n.Stderr().Tail(2000))
	}
	return n, nil
}

func (n *Node) command(name string, args ...string) testnet.Command {
	return testnet.Command{
		Name:   name,
		Path:   n.opts.Program[0],
		Args:   append(append([]string(nil), n.opts.Program[1:]...), args...),
		Env:    n.opts.Env,
		Cgroup: Cgroup,
		UID:    n.opts.UID, GID: n.opts.UID, Capabilities: n.opts.Capabilities,
	}
}

// ConfigPath returns the path of the node's configuration.
func (n *Node) ConfigPath() string { return n.config }

// Socket returns the path of the node's admin socket.
func (n *Node) Socket() string { return n.socket }

var errNotReady = errors.New("not ready")

func (n *Node) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case <-n.Done():
			cancel(errors.New("the process ended"))
		case <-stopped:
		}
	}()
	transport := &http.Transport{DialContext: n.opts.Host.DialContext, DisableKeepAlives: true}
	probe := &http.Client{Transport: transport, Timeout: time.Second}
	err := testnet.Until(ctx, func() error {
		resp, err := probe.Get("http://" + readyAddr + "/healthz/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK && !strings.HasPrefix(string(text), admin.ErrServesNothing.Error()) {
			return fmt.Errorf("%w: %s", errNotReady, resp.Status)
		}
		return nil
	})
	if err != nil && context.Cause(ctx) != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return err
}

// Run runs another command of the product on the node's host, such as
// "connections", against this node, and returns its standard output.
func (n *Node) Run(ctx context.Context, args ...string) ([]byte, error) {
	return n.opts.Host.Run(ctx, n.command("meshproxy-"+args[0], args...))
}

// Leave stops the node and removes everything that it keeps in the kernel.
func (n *Node) Leave(ctx context.Context) error {
	n.Admin.Close()
	if err := n.Stop(ctx); err != nil {
		return err
	}
	_, err := n.Run(ctx, "leave", "--config", n.config)
	return err
}
