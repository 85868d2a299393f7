// SPDX-License-Identifier: Apache-2.0

package sockmap

import "github.com/meshproxy/meshproxy/bpf"

func (c *Capture) listening() (map[bpf.CapturePortKey]uint32, error) {
	return nil, nil
}
