// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is the memory limits that this process is under: those of its cgroup
// and of the ones above, in a hierarchy of version 2 or 1.
type Memory struct {
	dirs []string // from the process's own up
	v1   bool
}

// OwnMemory finds the limits of this process. Where nothing accounts for memory,
// Read finds none.
func OwnMemory() (*Memory, error) {
	content, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read cgroup of process: %w", err)
	}
	if path, ok := memoryV1(content); ok {
		root, err := memoryMount()
		if err != nil {
			return nil, err
		}
		if root != "" {
			return &Memory{dirs: upwards(root, path), v1: true}, nil
		}
	}
	path, err := parseProc(content)
	if errors.Is(err, ErrNoHierarchy) {
		return &Memory{}, nil
	}
	if err != nil {
		return nil, err
	}
	root, err := Root()
	if err != nil {
		return nil, err
	}
	return &Memory{dirs: upwards(root, path)}, nil
}

// memoryV1 finds the cgroup of the version 1 memory controller, see cgroups(7).
func memoryV1(content []byte) (string, bool) {
	for line := range bytes.Lines(content) {
		fields := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			if controller == "memory" {
				return fields[2], true
			}
		}
	}
	return "", false
}

// memoryMount finds where the version 1 memory controller is mounted, "" when it
// isn't.
func memoryMount() (string, error) {
	f, err := os.Open(mountInfo)
	if err != nil {
		return "", fmt.Errorf("find memory controller: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		front, back, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(front), strings.Fields(back)
		if !ok || len(fields) < 5 || len(rest) < 3 || rest[0] != "cgroup" {
			continue
		}
		for option := range strings.SplitSeq(rest[2], ",") {
			if option == "memory" {
				return unescape(fields[4]), nil
			}
		}
	}
	return "", lines.Err()
}

// upwards lists the directories from path up to the root of the hierarchy.
func upwards(root, path string) (dirs []string) {
	for at := filepath.Clean("/" + path); ; at = filepath.Dir(at) {
		dirs = append(dirs, filepath.Join(root, at))
		if at == "/" {
			return dirs
		}
	}
}

// Usage is how much memory is used where there is a limit. Limit 0 means that
// there is none.
type Usage struct{ Used, Limit uint64 }

// Read returns the usage of the cgroup that is nearest to its limit. What the
// kernel can take back at once, pages of files that nobody has used lately,
// doesn't count as used. The files are read each time: limits change.
func (m *Memory) Read() (tightest Usage) {
	for _, dir := range m.dirs {
		u, ok := m.read(dir)
		if ok && (tightest.Limit == 0 || float64(u.Used)/float64(u.Limit) > float64(tightest.Used)/float64(tightest.Limit)) {
			tightest = u
		}
	}
	return tightest
}

// unlimited is what version 1 has for no limit: the largest number of pages.
const unlimited = math.MaxInt64 / 4096 * 4096 / 2

func (m *Memory) read(dir string) (u Usage, ok bool) {
	limit, used, stat := "memory.max", "memory.current", "inactive_file "
	if m.v1 {
		limit, used, stat = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "
	}
	if u.Limit, ok = readNumber(dir + "/" + limit); !ok || u.Limit == 0 || u.Limit >= unlimited {
		return Usage{}, false
	}
	if u.Used, ok = readNumber(dir + "/" + used); !ok {
		return Usage{}, false
	}
	content, err := os.ReadFile(dir + "/memory.stat")
	if err != nil {
		return u, true
	}
	for line := range bytes.Lines(content) {
		if value, found := bytes.CutPrefix(line, []byte(stat)); found {
			if n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64); err == nil {
				u.Used -= min(n, u.Used)
			}
			break
		}
	}
	return u, true
}

// readNumber fails for "max", too.
func readNumber(file string) (uint64, bool) {
	content, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(string(bytes.TrimSpace(content)), 10, 64)
	return n, err == nil
}
