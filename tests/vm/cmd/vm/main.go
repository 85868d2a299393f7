// SPDX-License-Identifier: Apache-2.0

// Command vm runs a command in a machine of package vm, to try things out:
//
//	go run ./tests/vm/cmd/vm -kernel 5.10 -file bin/meshproxy:/usr/bin/meshproxy meshproxy check
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/meshproxy/meshproxy/tests/vm"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		code = 1
	}
	os.Exit(code)
}

func run() (code int, err error) {
	var o vm.Options
	flag.StringVar(&o.Kernel, "kernel", vm.DefaultKernel, "5.10, 6.1, 6.12 or 7.2")
	flag.IntVar(&o.Memory, "memory", 512, "MiB of memory")
	flag.Func("package", "a package of Debian to have", func(s string) error {
		o.Packages = append(o.Packages, s)
		return nil
	})
	flag.Func("file", "FROM:TO, a file to have", func(s string) error {
		from, to, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("want FROM:TO")
		}
		o.Files = append(o.Files, vm.File{Path: to, From: from, Mode: 0o755})
		return nil
	})
	flag.Parse()
	if flag.NArg() == 0 {
		return 2, errors.New("which command?")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	machine, err := vm.Start(ctx, "command", o)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, machine.Close()) }()
	r, err := machine.Exec(ctx, vm.Command{Args: flag.Args()})
	fmt.Print(r.Stdout)
	fmt.Fprint(os.Stderr, r.Stderr)
	return r.Code, err
}
