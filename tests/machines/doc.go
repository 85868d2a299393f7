// SPDX-License-Identifier: Apache-2.0

// Package machines runs the product as an operator does: installed on two
// Debian machines, under their systemd, with two enrolled units on each that
// call across, while it is reloaded, upgraded, killed, hung, rebooted and removed;
// and with containers as workloads.
//
// On each machine a third enrolled unit knocks at a port of the other machine
// where nothing of the mesh listens, and a program that is no workload knocks at
// a workload: whoever is let in at any time, a boot included, was outside the
// mesh. They run all the while, and after the removal show that they would have
// told.
//
// make test-vm runs them; the logs of the machines, and a summary, remain.
package machines
