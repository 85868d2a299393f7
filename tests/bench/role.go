// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/meshproxy/meshproxy/tests/bench/load"
)

// role runs one of the processes that the benchmark starts in its hosts.
func role(args []string) error {
	switch name := args[0]; name {
	case "server":
		load.Tune()
		return serveRole(args[1])
	case "client":
		load.Tune()
		return clientRole(args[1])
	case "pair-server":
		load.Tune()
		return load.ServePairs(args[1:], func() { fmt.Println("ready") })
	case "pair-client":
		load.Tune()
		return pairRole(args[1])
	case "awake":
		cpu, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		load.Tune()
		return load.KeepAwake(cpu, func() { fmt.Println("ready") })
	case "tls-client", "tls-server":
		return runTLSProxy(name, args[1], args[2], args[3], args[4], args[5])
	case "many-servers", "many-clients":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		if name == "many-servers" {
			return playServers(args[1], count)
		}
		return playClients(args[1], count, args[3])
	}
	return fmt.Errorf("no role %q", args[0])
}

func serveRole(addr string) error {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("parse address: %w", err)
	}
	return load.Serve(a, func() { fmt.Println("ready") })
}

func pairRole(text string) error {
	var args pairArgs
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		return fmt.Errorf("parse arguments: %w", err)
	}
	r, err := args.Run(args.Window)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// clientRole measures one thing and prints the result; "idle" prints "ready"
// and holds its connections.
func clientRole(text string) error {
	var args clientArgs
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		return fmt.Errorf("parse arguments: %w", err)
	}
	var r load.Result
	var err error
	switch args.Kind {
	case "ping":
		r, err = load.Ping(args.Addr, args.Count, args.Window)
	case "up", "down":
		r, err = load.Bulk(args.Addr, args.Count, args.Kind == "up", args.Window)
	case "connect":
		r, err = load.Connect(args.Addr, args.Count, args.Window)
	case "once":
		end, err := load.Idle(args.Addr, 1)
		if err != nil {
			return err
		}
		end()
	case "idle":
		if _, err := load.Idle(args.Addr, args.Count); err != nil {
			return err
		}
		fmt.Println("ready")
		select {}
	default:
		return fmt.Errorf("no client %q", args.Kind)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
