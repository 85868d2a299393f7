// SPDX-License-Identifier: Apache-2.0

// Command agent is package agent on the port of a virtual machine.
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/meshproxy/meshproxy/tests/vm/agent"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run() error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("name boot: %w", err)
	}
	port, err := openPort("agent")
	if err != nil {
		return err
	}
	defer port.Close()
	return agent.New(port, strings.TrimSpace(string(boot))).Serve()
}

// openPort opens a virtio serial port by its name. udev makes a link of that
// name, later than the agent starts.
func openPort(name string) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	for _, e := range entries {
		got, err := os.ReadFile(class + "/" + e.Name() + "/name")
		if err == nil && strings.TrimSpace(string(got)) == name {
			return os.OpenFile("/dev/"+e.Name(), os.O_RDWR, 0)
		}
	}
	return nil, fmt.Errorf("find port %s: %w", name, os.ErrNotExist)
}
