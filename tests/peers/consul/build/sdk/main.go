// SPDX-License-Identifier: Apache-2.0

// Command sdk is a program that joins Consul's service mesh by itself, with
// Consul's Go SDK (github.com/hashicorp/consul/connect), between two plain TCP
// addresses: as a client it takes connections and dials a service for each; as
// a server it takes those of the mesh and dials an application.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/consul/connect"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	name := flag.String("service", "", "who this is")
	listen := flag.String("listen", "", "address to take connections at")
	upstream := flag.String("upstream", "", "as a client: the service to dial")
	app := flag.String("app", "", "as a server: the application to dial")
	flag.Parse()
	client, err := api.NewClient(api.DefaultConfig())
	if err != nil {
		return err
	}
	service, err := connect.NewService(*name, client)
	if err != nil {
		return err
	}
	defer service.Close()
	<-service.ReadyWait()
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	dial := func() (net.Conn, error) { return net.Dial("tcp", *app) }
	if *upstream == "" {
		ln = tls.NewListener(ln, service.ServerTLSConfig())
	} else {
		dial = func() (net.Conn, error) {
			return service.Dial(context.Background(), &connect.ConsulResolver{Client: client, Name: *upstream})
		}
	}
	fmt.Println("ready")
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go serve(c, dial)
	}
}

func serve(c net.Conn, dial func() (net.Conn, error)) {
	defer c.Close()
	if t, ok := c.(*tls.Conn); ok {
		if err := t.Handshake(); err != nil {
			fmt.Fprintln(os.Stderr, "handshake:", err)
			return
		}
	}
	d, err := dial()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dial:", err)
		return
	}
	defer d.Close()
	var both sync.WaitGroup
	both.Go(func() { pass(c, d) })
	both.Go(func() { pass(d, c) })
	both.Wait()
}

// pass copies one direction to its end.
func pass(from, to net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		from.Close()
		to.Close()
		return
	}
	if h, ok := to.(interface{ CloseWrite() error }); ok {
		_ = h.CloseWrite()
	}
}
