// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// layout is the version of the maps' types and meanings. State of another
// layout is replaced: its links get the new programs one by one, so that there
// is no moment without capture, and its maps are built anew.
const layout = 3

// place is where the state of one instance is pinned:
//
//	<BPFFS>/meshproxy/<instance>/v<layout>/maps/<map>
//	                                      /links/<hook>
//	                                      /links/netns-<cookie>
//	                            /stage     being built, never adopted
//
// A place is locked: by flock(2) on its directory, which bpffs allows and which
// ends with the process. A process that hands its state over shares the lock
// with the one that follows: the place is never free in between.
type place struct {
	dir    string
	layout int
	lock   *os.File
	shared bool // with a process that owns the state
}

// openPlace makes the directory if need be and locks it. It returns ErrBusy
// when another process has it and ErrNotBPFFS when bpffs is no bpf file system.
func openPlace(bpffs, instance string) (*place, error) {
	if err := checkBPFFS(bpffs); err != nil {
		return nil, err
	}
	dir := filepath.Join(bpffs, "meshproxy", instance)
	// Leave may remove the directory between any two of these steps.
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("create state directory: %w", err)
		}
		p, err := lockPlace(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return p, err
	}
}

// findPlace is openPlace for state that exists; without it the error is
// fs.ErrNotExist.
func findPlace(bpffs, instance string) (*place, error) {
	if err := checkBPFFS(bpffs); err != nil {
		return nil, err
	}
	return lockPlace(filepath.Join(bpffs, "meshproxy", instance))
}

// inheritPlace is openPlace for the successor of the process that has the lock.
func inheritPlace(bpffs, instance string, lock *os.File) (*place, error) {
	if err := checkBPFFS(bpffs); err != nil {
		return nil, err
	}
	dir := filepath.Join(bpffs, "meshproxy", instance)
	want, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrElsewhere)
	}
	if err != nil {
		return nil, fmt.Errorf("look for state directory: %w", err)
	}
	have, err := lock.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at inherited lock: %w", err)
	}
	if !os.SameFile(want, have) {
		return nil, fmt.Errorf("%s: %w", dir, ErrElsewhere)
	}
	return &place{dir: dir, layout: layout, lock: lock, shared: true}, nil
}

func lockPlace(dir string) (*place, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, ErrBusy)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	// What is locked must be what the path leads to.
	locked, err := f.Stat()
	if err == nil {
		var now os.FileInfo
		if now, err = os.Stat(dir); err == nil && !os.SameFile(locked, now) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return &place{dir: dir, layout: layout, lock: f}, nil
}

// checkBPFFS looks at the part that is meshproxy's first: a service may be shown
// nothing else of the file system.
func checkBPFFS(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Join(path, "meshproxy"), &st); err == nil && st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("look for bpf file system at %s: %w", path, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s: %w", path, ErrNotBPFFS)
	}
	return nil
}

// close unlocks explicitly: a child that is just being forked by another
// goroutine still shares the descriptor. What is shared on purpose stays locked.
func (p *place) close() {
	if !p.shared {
		_ = unix.Flock(int(p.lock.Fd()), unix.LOCK_UN)
	}
	p.lock.Close()
}

// current is the directory of this layout, whether or not it exists.
func (p *place) current() string { return filepath.Join(p.dir, fmt.Sprintf("v%d", p.layout)) }

// others returns the directories of other layouts.
func (p *place) others() ([]string, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("read state directory: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		dir := filepath.Join(p.dir, e.Name())
		if strings.HasPrefix(e.Name(), "v") && dir != p.current() {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// dropOthers removes the state of other layouts, and what was being built. What a
// process still holds open of it lives on until that closes it.
func (p *place) dropOthers() error {
	dirs, err := p.others()
	if err != nil {
		return err
	}
	for _, dir := range append(dirs, p.staged()) {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove state of another layout: %w", err)
		}
	}
	return nil
}

func (p *place) staged() string { return filepath.Join(p.dir, "stage") }

// stage returns an empty directory in which state can be built; what a crash
// left there goes away.
func (p *place) stage() (string, error) {
	dir := p.staged()
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("clear stage: %w", err)
	}
	for _, d := range []string{dir, mapsDir(dir), linksDir(dir)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return "", fmt.Errorf("create stage: %w", err)
		}
	}
	return dir, nil
}

func mapsDir(state string) string  { return filepath.Join(state, "maps") }
func linksDir(state string) string { return filepath.Join(state, "links") }

// publish makes the stage the state of this layout.
func (p *place) publish(stage string) error {
	if err := os.Rename(stage, p.current()); err != nil {
		return fmt.Errorf("publish state: %w", err)
	}
	return nil
}

type pinner interface{ Pin(string) error }

// replacePin pins obj at path, where something else may be pinned: that stays
// until the new pin takes its place.
func replacePin(obj pinner, path string) error {
	next := filepath.Join(filepath.Dir(path), "next-"+filepath.Base(path))
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear pin: %w", err)
	}
	if err := obj.Pin(next); err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	// Pin moves an existing pin, which would remember the temporary name.
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	return nil
}
