// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"

	"github.com/meshproxy/meshproxy/sockmap/netns"
)

// ownership is what the role "owner" is told: a process that owns a capture
// until it is killed.
type ownership struct {
	Root, BPFFS, Instance string
	State                 State
}

// ownCapture plays that role.
func ownCapture() {
	var o ownership
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fatal(err)
	}
	c, err := Open(Options{
		CgroupRoot: o.Root, BPFFS: o.BPFFS, Instance: o.Instance, Ports: testPorts,
		HeartbeatTimeout: 1 << 40, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fatal(err)
	}
	h, err := netns.OfThread()
	if err != nil {
		fatal(err)
	}
	if _, err := c.AttachNetNS(h.FD()); err != nil {
		fatal(err)
	}
	if err := c.Apply(o.State); err != nil {
		fatal(err)
	}
	if err := c.Heartbeat(); err != nil {
		fatal(err)
	}
	fmt.Println("ready")
	for range c.Events() {
	}
}

// own starts a process that owns the world's capture, and returns how to kill
// it.
func (w *world) own(s State) (kill func()) {
	w.t.Helper()
	dir, err := os.Open(w.cgroup("proxy"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = playing("owner")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := netns.Do(w.ns.FD(), cmd.Start); err != nil {
		w.t.Fatal(err)
	}
	dead := false
	kill = func() {
		if !dead {
			dead = true
			_ = cmd.Process.Kill()
			wait(w.t, cmd)
		}
	}
	w.t.Cleanup(kill)
	o := ownership{Root: w.opts.CgroupRoot, BPFFS: w.opts.BPFFS, Instance: w.opts.Instance, State: s}
	if err := json.NewEncoder(in).Encode(o); err != nil {
		w.t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil && err != io.EOF || line != "ready\n" {
		w.t.Fatalf("owner said %q, %v", line, err)
	}
	return kill
}
