// SPDX-License-Identifier: Apache-2.0

// Binary prints the path of the Consul binary that the tests use, and builds it
// when there is none.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/meshproxy/meshproxy/tests/peers/consul"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	path, err := consul.Binary(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(path)
}
