// SPDX-License-Identifier: Apache-2.0

package l4

import "github.com/meshproxy/meshproxy/nodeproxy/loop"

// Adopt takes a connected stream socket as if a listener had accepted it: the
// node's own checks travel like its workloads' connections. The Relays own fd
// from then on.
func (s *Relays) Adopt(fd int, c Client, r Router) {
	loop.SetNoDelay(fd)
	s.accept(fd, c, r)
}
