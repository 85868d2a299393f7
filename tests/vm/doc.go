// SPDX-License-Identifier: Apache-2.0

// Package vm boots Debian in virtual machines for tests: a kernel of one's
// choice, real systemd, real packages, reboots. What a network namespace shows
// just as well belongs into package testnet, which is a thousand times faster.
//
//	machine := vm.Boot(t, vm.Options{
//		Kernel: "6.1",
//		Files:  []vm.File{{Path: "/usr/bin/meshproxy", From: "bin/meshproxy", Mode: 0o755}},
//	})
//	machine.Run(t, "systemctl", "enable", "--now", "meshproxy")
//	machine.Reboot(t)
//	fmt.Println(machine.Run(t, "journalctl", "-b", "-u", "meshproxy"))
//
// Two machines meet on a [Switch]:
//
//	lan := vm.NewSwitch(t)
//	machines := vm.BootAll(t,
//		vm.Options{Name: "a", Switch: lan, Addresses: []string{"10.77.0.1/24", "fd00:77::1/64"}},
//		vm.Options{Name: "b", Switch: lan, Addresses: []string{"10.77.0.2/24", "fd00:77::2/64"}})
//
// # What a machine is
//
// qemu emulates the processor (TCG), since nested virtualization is rarely to
// be had where tests run; a machine is ready in about eight seconds, and its
// processor is ten times slower than the real one. MESHPROXY_VM_ACCEL=kvm makes
// use of KVM where it is worth having. Root file system and kernels are made
// once, from Debian's packages, and kept in the user's cache directory below
// meshproxy-vm; removing that directory fetches them anew. A machine writes to
// a temporary layer above them: its changes survive reboots of the guest and
// are gone with the machine.
//
// [Options.Files] are unpacked at the first boot. Further commands and files go
// through an agent over a virtio serial port, so a test needs no network, and
// keeps its hands on a machine that has lost it.
//
// # What remains
//
// Serial console, qemu's messages and the journal of each machine lie in
// [LogDir], per test, whether it passed or not. Nothing else does: qemu dies
// with the test process, however that ends, and what a crashed one left in the
// temporary directory goes when the next machine boots.
//
// Emulated machines starve each other: one test process has machines at a time,
// the others wait at their first Boot. They come before whatever else runs, since
// timeouts in a machine go by the real clock; MESHPROXY_VM_NICE=0 spares others.
package vm
