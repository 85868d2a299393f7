// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"errors"
	"math"

	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// reserved descriptors stay free of relayed connections: a node that can't
// answer its administrator, read its CA or list listeners any more would be
// worse off than one that refuses connections. Of a small limit it's a quarter.
const reserved = 64

// ErrDescriptors: the process has too few descriptors left for more connections.
var ErrDescriptors = reason.Wrap(reason.LimitFD, errors.New("descriptors are short"))

// descriptors knows how many descriptors connections may take. The kernel gives
// the lowest free number (POSIX, section 2.6), so that the number itself tells
// how many are in use, and no count has to be kept.
type descriptors struct{ end int }

// read asks for the limit, which may be changed at any time (prlimit).
func (d *descriptors) read() {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return
	}
	n := int(min(limit.Cur, math.MaxInt32))
	d.end = n - min(reserved, n/4)
}

// allow returns ErrDescriptors for a descriptor that is one of the last.
func (d *descriptors) allow(fd int) error {
	if fd < d.end {
		return nil
	}
	if d.read(); fd < d.end { // it was raised
		return nil
	}
	return ErrDescriptors
}
