// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// Errors that callers can tell apart.
var (
	// ErrBusy means that another process owns the instance.
	ErrBusy = errors.New("capture is owned by another process")
	// ErrNoFlow means that an accepted connection is none that was captured,
	// or that the kernel had no room to note where it wanted to go.
	ErrNoFlow = errors.New("no flow on record")
	// ErrNotBPFFS means that a path is on no bpf file system.
	ErrNotBPFFS = errors.New("not on a bpf file system")
	// ErrUnknownNetNS means that a network namespace is not attached.
	ErrUnknownNetNS = errors.New("network namespace is not attached")
	// ErrElsewhere means that the state to be taken over is another instance's.
	ErrElsewhere = errors.New("not where the state is that is handed over: bpf.fs or bpf.instance has changed, which needs a restart")
	// ErrYielded means that another process has taken over the state.
	ErrYielded = errors.New("capture is handed over to another process")
	// ErrClosed means that the Capture was used after Close.
	ErrClosed = errors.New("capture is closed")
	// ErrNotAttached means that a link exists, but its program does not run:
	// its cgroup is gone or not the one asked for.
	ErrNotAttached = errors.New("program is not attached")
)

// What Options leave out.
const (
	DefaultHeartbeatTimeout = 3 * time.Second
	DefaultMaxFlows         = 65536
)

// Ports are the proxy's own, in every namespace of the mesh. Nobody else can
// bind them there. Zero means that there is no such listener.
type Ports struct {
	Outbound     uint16 // captured connections
	InboundPlain uint16 // steered plaintext connections
	InboundHBONE uint16
	InboundMTLS  uint16
	DNS          uint16 // UDP and TCP
}

func (p Ports) has(port uint16) bool {
	return port != 0 && (port == p.Outbound || port == p.InboundPlain || port == p.InboundHBONE ||
		port == p.InboundMTLS || port == p.DNS)
}

// Options say where the capture works and what it is called.
type Options struct {
	// CgroupRoot is the absolute path of a cgroup2 directory: the mount's own
	// or a subtree. Nothing outside of it is touched. The proxy itself must
	// run below it too, or servers see the proxy in place of their clients
	// and refuse it in strict mode.
	CgroupRoot string
	// BPFFS is where a bpf file system is mounted.
	BPFFS string
	// Instance tells several captures of one machine apart.
	Instance string
	Ports    Ports
	// HeartbeatTimeout is how long after its last heartbeat the proxy counts
	// as away. Zero means DefaultHeartbeatTimeout.
	HeartbeatTimeout time.Duration
	// MaxFlows bounds the connections that are between connect(2) and the
	// proxy's accept(2). Zero means DefaultMaxFlows.
	MaxFlows uint32
	// Lock is that of the process which hands its state over, if there is one;
	// it is the Capture's from then on. Nothing changes in the kernel until
	// TakeOver.
	Lock *os.File
	// Namespaces is the way into network namespaces other than the process's
	// own. Nil is netns.Direct.
	Namespaces netns.Opener
	// Logger is required.
	Logger *slog.Logger

	// features are those of the kernel, unless a test wants less.
	features *kernelFeatures
	// maxSpliced and maxDirects, if not 0, are the sizes of the maps, for
	// tests of what happens when they are full.
	maxSpliced, maxDirects uint32
	// switching, if not nil, is called after each step of putting programs in
	// force, for tests of what connections meet in between.
	switching func()
}

func (o *Options) complete() error {
	if o.HeartbeatTimeout == 0 {
		o.HeartbeatTimeout = DefaultHeartbeatTimeout
	}
	if o.MaxFlows == 0 {
		o.MaxFlows = DefaultMaxFlows
	}
	if o.Namespaces == nil {
		o.Namespaces = netns.Direct{}
	}
	if o.switching == nil {
		o.switching = func() {}
	}
	if o.features == nil {
		o.features = probeFeatures()
	}
	if o.Logger == nil {
		return errors.New("no logger")
	}
	if o.Ports.Outbound == 0 {
		return errors.New("no outbound port")
	}
	if !filepath.IsAbs(o.CgroupRoot) {
		return fmt.Errorf("cgroup root %q is not an absolute path", o.CgroupRoot)
	}
	o.CgroupRoot = filepath.Clean(o.CgroupRoot)
	return o.checkPlace()
}

// checkPlace is all that Leave needs.
func (o *Options) checkPlace() error {
	if !filepath.IsAbs(o.BPFFS) {
		return fmt.Errorf("bpf file system %q is not an absolute path", o.BPFFS)
	}
	if o.Instance == "" || strings.ContainsAny(o.Instance, "./\x00") {
		// bpffs refuses names with dots.
		return fmt.Errorf("instance %q: want a name without dots and slashes", o.Instance)
	}
	return nil
}
