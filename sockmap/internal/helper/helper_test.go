// SPDX-License-Identifier: Apache-2.0

package helper

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

func TestHave(t *testing.T) {
	for fn, want := range map[asm.BuiltinFunc]error{
		asm.FnSkStorageGet: nil,
		asm.FnSetRetval:    nil, // this is 5.18 or later
		asm.FnSkAssign:     ebpf.ErrNotSupported,
	} {
		if err := Have(ebpf.CGroupSockAddr, fn); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", fn, err, want)
		}
	}
}
