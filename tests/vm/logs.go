// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// LogDir is where the logs of machines remain: MESHPROXY_VM_LOGS, or
// bin/vm-logs of the module.
func LogDir() (string, error) {
	if dir := os.Getenv("MESHPROXY_VM_LOGS"); dir != "" {
		return dir, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "bin", "vm-logs"), nil
}

// logsOf makes the empty directory for the logs of a machine.
func logsOf(test, machine string) (string, error) {
	base, err := LogDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, strings.ReplaceAll(test, "/", "-"), machine)
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear logs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory for logs: %w", err)
	}
	return dir, nil
}

// saveJournal keeps the journal of all boots, as far as the machine still
// answers.
func (v *VM) saveJournal() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := v.Exec(ctx, Command{Args: []string{"journalctl", "--no-pager", "-o", "short-monotonic"}})
	text := r.Stdout
	if err != nil {
		text += fmt.Sprintf("\nread journal: %v\n", err)
	}
	_ = os.WriteFile(filepath.Join(v.logs, "journal.log"), []byte(text), 0o644) // a test does not fail by it
}

func (v *VM) consoleTail() string {
	data, _ := os.ReadFile(filepath.Join(v.logs, "console.log"))
	return tail(string(data), 3000)
}

func (v *VM) qemuLog() string {
	data, _ := os.ReadFile(filepath.Join(v.logs, "qemu.log"))
	return tail(string(data), 2000)
}
