// SPDX-License-Identifier: Apache-2.0

// Package packages installs, upgrades and removes the product as an operator
// does, with the real rpm, dpkg and make, and compares what is there afterwards
// with what was there before.
//
// It happens on a copy of this machine: an overlay of its root file system, in a
// mount namespace of its own. There systemd does not run: what the packages'
// scripts ask of it is written down instead of done, and package machines shows
// the rest in virtual machines.
//
// make test-packages runs the tests.
package packages
