// SPDX-License-Identifier: Apache-2.0

package l4

// Adopt takes a connected stream socket as if a listener had accepted it: the
// node's own checks travel like its workloads' connections. The Relays own fd
// from then on.
func (s *Relays) Adopt(fd int, c Client, r Router) { s.accept(fd, c, r) }
