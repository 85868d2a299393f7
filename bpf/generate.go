// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the programs that run in the kernel, compiled, and the Go
// types of what they share with user space.
//
// The C sources lie beside it, one file per concern; regenerating needs clang
// and llvm-strip, building does not. The package must not know what the
// programs are for: package sockmap loads, pins and feeds them.
package bpf

//go:generate go tool bpf2go -target bpfel,bpfeb -cflags "-mcpu=v3 -Wall -Wextra -Werror" -type address -type outcome -type reason -type event_kind -type workload_flags -type port_flags -type flow_flags -type socket_flags -type direction -type destination_flags -type local -type access -type direct_flags -type splicing -type fallback -type side -type habit Capture capture.c
//go:generate go tool bpf2go -target bpfel,bpfeb -cflags "-mcpu=v3 -Wall -Wextra -Werror" -no-global-types Inbound inbound.c
//go:generate go tool bpf2go -target bpfel,bpfeb -cflags "-mcpu=v3 -Wall -Wextra -Werror" -no-global-types Splice splice.c
//go:generate go tool bpf2go -target bpfel,bpfeb -cflags "-mcpu=v3 -Wall -Wextra -Werror" -no-global-types Hop hop.c
//go:generate go tool bpf2go -target bpfel,bpfeb -cflags "-mcpu=v3 -Wall -Wextra -Werror" -no-global-types Reads reads.c
