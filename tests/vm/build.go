// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// Build builds a program of this module for machines: static, since theirs is
// another C library. Go's cache makes a second time quick.
func Build(ctx context.Context, pkg string) (string, error) {
	return build(ctx, pkg, "build", "-trimpath", "-ldflags", "-s -w")
}

// BuildTest builds the tests of a package as a program.
func BuildTest(ctx context.Context, pkg string) (string, error) {
	return build(ctx, pkg, "test", "-c", "-trimpath")
}

func build(ctx context.Context, pkg string, args ...string) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	// Trees side by side on one machine differ in what they build.
	sum := sha256.Sum256([]byte(root + args[0] + pkg))
	dir := filepath.Join(cache, "programs", hex.EncodeToString(sum[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	unlock, err := lockFile(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	program := filepath.Join(dir, path.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", program, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return program, nil
}

// moduleRoot is the directory with go.mod: tests run in that of their package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find module: %w", os.ErrNotExist)
}
