// SPDX-License-Identifier: Apache-2.0

// Command workload is package workload as a program.
package main

import (
	"os"

	"github.com/meshproxy/meshproxy/tests/workload"
)

func main() { os.Exit(workload.Main(os.Args[1:], os.Stdout, os.Stderr)) }
