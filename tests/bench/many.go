// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/meshproxy/meshproxy/tests/bench/upstreams"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// manyFirstPort is where the services of many workloads begin, below the ports
// that connections are made from.
const manyFirstPort = upstreams.FirstPort

// manyWorkloads measures the nodes' memory with a number of workloads on each:
// those of host b serve a service each, those of host a call one each, once.
// Every workload has an identity of its own, so that each call needs a tunnel
// of its own. The result is that of the larger node, in bytes.
//
// One process per host plays all of them: a socket belongs to the cgroup that
// its process is in when it is made, and the process moves.
func manyWorkloads(ctx context.Context, s *site, count int) (float64, error) {
	nodes, err := startNodes(ctx, s, manyMesh(s, count), benchExtra)
	if err != nil {
		return 0, err
	}
	defer nodes.leave(context.WithoutCancel(ctx))
	end, err := playMany(ctx, s, count)
	defer end()
	if err != nil {
		return 0, err
	}
	if err := nodes.checkUsed(ctx, count); err != nil {
		return 0, err
	}
	memory, err := settledRSS(ctx, []int{nodes[0].Pid(), nodes[1].Pid()})
	if err != nil {
		return 0, err
	}
	return max(memory[0], memory[1]), nil
}

// playMany starts the servers, then the clients, and returns when every client
// has called once. The returned function ends them.
func playMany(ctx context.Context, s *site, count int) (end func(), err error) {
	var players []*testnet.Process
	end = func() {
		for _, p := range players {
			_ = p.Kill()
			<-p.Done()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, play := range []struct {
		host *testnet.Host
		role string
	}{{s.b, "many-servers"}, {s.a, "many-clients"}} {
		p, err := play.host.Start(testnet.Command{
			Name: play.role, Path: testnet.Self, Cgroup: "many",
			Args: []string{"role", play.role, play.host.Cgroup("many"), strconv.Itoa(count), s.b.Addr4().String()},
		})
		if err != nil {
			return end, err
		}
		players = append(players, p)
		if _, err := p.Stdout().WaitString(ctx, "ready"); err != nil {
			return end, fmt.Errorf("play %s: %w: %s", play.role, err, p.Stderr().Tail(300))
		}
	}
	return end, nil
}

func manyMesh(s *site, count int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "nodes:\n- {name: a, address: %s}\n- {name: b, address: %s}\nworkloads:\n", s.a.Addr4(), s.b.Addr4())
	for i := range count {
		for _, h := range s.topology.Hosts() {
			path := meshnode.CgroupPath(s.topology, h.Namespace, filepath.Join("many", strconv.Itoa(i)))
			fmt.Fprintf(&b, "- {name: %s-%d, node: %s, match: [{cgroup: %s}]}\n", h.Name(), i, h.Name(), path)
		}
	}
	b.WriteString("authorization: {default: allow}\nservices:\n")
	for i := range count {
		fmt.Fprintf(&b, "- {name: b-%d, ports: [{port: %d}], endpoints: [{node: b, port: %d}]}\n", i, manyFirstPort+i, manyFirstPort+i)
	}
	return b.String()
}

// moveTo moves this process to a cgroup below parent, which is made.
func moveTo(parent string, i int) error {
	group := filepath.Join(parent, strconv.Itoa(i))
	if err := os.MkdirAll(group, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// playServers is the role of all servers.
func playServers(parent string, count int) error {
	for i := range count {
		if err := moveTo(parent, i); err != nil {
			return err
		}
		l, err := net.Listen("tcp4", ":"+strconv.Itoa(manyFirstPort+i))
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	}
	fmt.Println("ready")
	select {}
}

// playClients is the role of all clients.
func playClients(parent string, count int, server string) error {
	for i := range count {
		if err := moveTo(parent, i); err != nil {
			return err
		}
		if err := callOnce(net.JoinHostPort(server, strconv.Itoa(manyFirstPort+i))); err != nil {
			return fmt.Errorf("call service %d: %w", i, err)
		}
	}
	fmt.Println("ready")
	select {}
}

func callOnce(addr string) error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, "once\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "once\n" {
		err = fmt.Errorf("answer is %q", line)
	}
	return err
}
