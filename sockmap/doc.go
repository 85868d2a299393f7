// SPDX-License-Identifier: Apache-2.0

// Package sockmap is everything of meshproxy that touches the kernel's socket
// layer: it loads, pins and attaches the programs of package bpf, keeps their
// maps in step with the mesh as this node knows it, and tells the proxy what
// the kernel knows about a connection.
//
// All kernel state lies pinned below <BPFFS>/meshproxy/<instance>/v<layout>
// and stays in force when the process is gone; Leave removes it.
//
// The package knows the words of discovery's model. It must not know what the
// proxy does with a connection, nor where the mesh comes from.
package sockmap
