// SPDX-License-Identifier: Apache-2.0

// Package static is the discovery source that reads the mesh from YAML files:
// nodes, services, policies, authorization and workloads.
//
// Decoding is strict, and a set of files is valid as a whole or not at all:
// Load either returns everything or all that is wrong with it. While it runs,
// the Source follows changes of the files; a change that is not valid leaves
// what is in force and is reported.
//
// Services, nodes and policies are those of the whole mesh, so the same file
// can be given to every node; of the workloads, those that name another node
// are left out.
package static
