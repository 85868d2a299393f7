// SPDX-License-Identifier: Apache-2.0

// Package helper tells which of the functions that programs call the kernel has.
package helper

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// Have returns nil when programs of a type may call a function, and
// ebpf.ErrNotSupported when they may not.
func Have(typ ebpf.ProgramType, fn asm.BuiltinFunc) error {
	err := features.HaveProgramHelper(typ, fn)
	if err == nil || errors.Is(err, ebpf.ErrNotSupported) || fn != asm.FnSetRetval {
		return err
	}
	// Linux 7.2 refuses the call without an argument for another reason than
	// the library expects of a function that exists.
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: typ, AttachType: ebpf.AttachCGroupInet4Connect, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 0), fn.Call(), asm.Mov.Imm(asm.R0, 1), asm.Return(),
		},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("load program that calls %s: %w", fn, err)
	}
	return prog.Close()
}
