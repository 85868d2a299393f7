// SPDX-License-Identifier: Apache-2.0

package l4

import (
	"testing"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

func TestDescriptors(t *testing.T) {
	var d descriptors
	d.read()
	if err := d.allow(3); err != nil {
		t.Errorf("the first descriptor: %v", err)
	}
	if err := d.allow(d.end - 1); err != nil {
		t.Errorf("the last that is allowed: %v", err)
	}
	end := d.end
	if err := d.allow(end); reason.Of(err) != reason.LimitFD {
		t.Errorf("the first that is reserved: %v", err)
	}
	// A limit that was raised counts at once.
	d.end = 10
	if err := d.allow(20); err != nil || d.end != end {
		t.Errorf("after the limit was raised: %v, up to %d", err, d.end)
	}
}
