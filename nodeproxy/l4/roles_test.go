// SPDX-License-Identifier: Apache-2.0

package l4_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/tests/bench/load"
)

// The benchmarks' client and server are processes of their own, this binary
// with a role in its environment, so that they don't share a scheduler with
// the nodes.
const roleEnv = "MESHPROXY_L4_ROLE"

// playRole runs one process of the measurement: "client KIND ADDR LENGTH",
// "serve ADDR".
func playRole(role string) int {
	load.Tune()
	f := strings.Fields(role)
	addr := netip.MustParseAddrPort(f[1])
	if f[0] == "serve" {
		fmt.Fprintln(os.Stderr, load.Serve(addr, func() { fmt.Println("ready") }))
		return 1
	}
	length, _ := time.ParseDuration(f[2])
	w := load.Window{Warm: 300 * time.Millisecond, Length: length}
	var r load.Result
	var err error
	switch f[0] {
	case "ping1":
		r, err = load.Ping(addr, 1, w)
	case "ping32":
		r, err = load.Ping(addr, 32, w)
	case "up":
		r, err = load.Bulk(addr, 1, true, w)
	case "down":
		r, err = load.Bulk(addr, 1, false, w)
	case "connect":
		r, err = load.Connect(addr, 8, w)
	case "idle":
		n, _ := strconv.Atoi(f[3])
		var closeAll func()
		if closeAll, err = load.Idle(addr, n); err == nil {
			fmt.Println("{}")
			_, _ = os.Stdin.Read(make([]byte, 1))
			closeAll()
			return 0
		}
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func roleCommand(role string) *exec.Cmd {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), roleEnv+"="+role, load.Env)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return c
}

// serveLoad starts the load's server and returns its address.
func serveLoad(t testing.TB) netip.AddrPort {
	fd, at := listen(t)
	unix.Close(fd) // the port is free again; nobody else looks for one just now
	c := roleCommand("serve " + at.String())
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal("load server:", line, err)
	}
	return at
}

// runLoad runs the load's client.
func runLoad(t testing.TB, kind string, to netip.AddrPort, length time.Duration) load.Result {
	t.Helper()
	out, err := roleCommand(fmt.Sprintf("%s %s %s", kind, to, length)).Output()
	if err != nil {
		t.Fatal(kind, err)
	}
	var r load.Result
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	return r
}
