// SPDX-License-Identifier: Apache-2.0

package upstreams

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// process is one that is looked at.
type process struct{ pid int }

// ticks per second of /proc/PID/stat, USER_HZ on every architecture of Linux
// that Go knows.
const ticks = 100

func (p process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// The name may have anything in it; fields are counted from behind it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var sum int64
	for _, i := range []int{11, 12} { // utime, stime
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/%d/stat: %w", p.pid, err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

func (p process) memory() (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		var to *int64
		switch name, _, _ := strings.Cut(line, ":"); name {
		case "VmRSS":
			to = &now
		case "VmHWM":
			to = &peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.Fields(line)[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read /proc/%d/status: %w", p.pid, err)
		}
		*to = kib << 10
	}
	return now, peak, nil
}

// connections are those that the process has to a port.
func (p process) connections(port int) (count int, err error) {
	own := make(map[string]bool)
	dir := fmt.Sprintf("/proc/%d/fd", p.pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, fd := range fds {
		if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:[") {
			own[strings.Trim(to, "socket:[]")] = true
		}
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/net/tcp", p.pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	const established = "01"
	in := bufio.NewScanner(f)
	for in.Scan() { // sl local remote state … inode
		fields := strings.Fields(in.Text())
		if len(fields) > 9 && strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", port)) && fields[3] == established && own[fields[9]] {
			count++
		}
	}
	return count, in.Err()
}
