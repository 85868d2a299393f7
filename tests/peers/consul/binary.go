// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Version is the release that build/go.mod requires.
const Version = "1.22.0"

// module is where this module's source is looked for.
const module = "module github.com/meshproxy/meshproxy\n"

// Binary returns the path of the consul binary. It is built once, which takes
// some minutes; whoever asks meanwhile waits.
func Binary(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	dir := filepath.Join(cache, "meshproxy-peers", "consul-"+Version)
	path := filepath.Join(dir, "consul")
	if built(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(path) { // by whoever held the lock
		return path, nil
	}
	return path, build(ctx, path, "github.com/hashicorp/consul")
}

func built(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// build is atomic: a build that is cut short leaves nothing at path.
func build(ctx context.Context, path, pkg string) error {
	source, err := findSource()
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp(filepath.Dir(path), "build-")
	if err != nil {
		return fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(temp)
	binary := filepath.Join(temp, "consul")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=readonly", "-trimpath", "-o", binary, pkg)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	if err := os.Rename(binary, path); err != nil {
		return fmt.Errorf("keep Consul: %w", err)
	}
	return nil
}

// findSource finds the nested module from the working directory, which for
// tests is their package.
func findSource() (string, error) {
	from, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find Consul's module: %w", err)
	}
	for dir := from; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), module) {
			return filepath.Join(dir, "tests", "peers", "consul", "build"), nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find Consul's module: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no Consul %s in the cache, and %s is not within meshproxy's source: run `make deps` there", Version, from)
		}
	}
}

// lock takes a lock between processes, which ends with them.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for another build of Consul: %w", ctx.Err())
		}
	}
}
