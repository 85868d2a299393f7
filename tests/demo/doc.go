// SPDX-License-Identifier: Apache-2.0

// Package demo shows a mesh of two nodes on this machine: real nodes, real
// workloads that call each other by name, and at the end a verdict about what
// a mesh has to do. It is `meshproxy demo`, and needs nothing but that binary
// and root.
//
// The cast and what is expected of it stand in cast.go and verdict.go. The
// package uses the product as an operator does (configuration files, commands,
// the admin socket) and must know nothing of its insides.
package demo
