// SPDX-License-Identifier: Apache-2.0

package load

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

func TestMain(m *testing.M) {
	addr := os.Getenv("LOAD_ADDR")
	role := os.Getenv("LOAD_ROLE")
	if role == "" {
		os.Exit(m.Run())
	}
	Tune()
	if err := play(role, netip.MustParseAddrPort(addr)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// play runs a role in a process of its own, as the package needs it.
func play(role string, addr netip.AddrPort) error {
	w := Window{Warm: 20 * time.Millisecond, Length: 100 * time.Millisecond, Cgroups: []string{os.Getenv("LOAD_CGROUP")}}
	var r Result
	var err error
	switch role {
	case "serve":
		return Serve(addr, func() { fmt.Println("ready") })
	case "ping1":
		r, err = Ping(addr, 1, w)
	case "ping32":
		r, err = Ping(addr, 32, w)
	case "up":
		r, err = Bulk(addr, 2, true, w)
	case "down":
		r, err = Bulk(addr, 2, false, w)
	case "connect":
		r, err = Connect(addr, 8, w)
	case "idle":
		var closeAll func()
		if closeAll, err = Idle(addr, 500); err == nil {
			closeAll()
			r.Count = 500
		}
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func TestRoles(t *testing.T) {
	topology, err := testnet.New("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer topology.Close()
	a, b := topology.Host("a"), topology.Host("b")
	env := func(role string) []string {
		return []string{Env, "LOAD_ROLE=" + role, "LOAD_ADDR=10.77.0.2:9000", "LOAD_CGROUP=" + b.Cgroup("server")}
	}
	server, err := b.Start(testnet.Command{Name: "server", Path: testnet.Self, Cgroup: "server", Env: env("serve")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Stdout().WaitString(t.Context(), "ready"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		role string
		ok   func(Result) bool
	}{
		{"ping1", func(r Result) bool { return r.Count > 0 && r.P50 > 1000 && r.P99 >= r.P50 }},
		{"ping32", func(r Result) bool { return r.Count > 0 && r.P50 > 1000 && r.P99 >= r.P50 }},
		{"up", func(r Result) bool { return r.Bytes > 0 }},
		{"down", func(r Result) bool { return r.Bytes > 0 }},
		{"connect", func(r Result) bool { return r.Count > 0 && r.P50 > 1000 }},
		{"idle", func(r Result) bool { return r.Count == 500 }},
	} {
		t.Run(tc.role, func(t *testing.T) {
			out, err := a.Run(t.Context(), testnet.Command{Name: tc.role, Path: testnet.Self, Env: env(tc.role)})
			if err != nil {
				t.Fatal(err)
			}
			var r Result
			if err := json.Unmarshal(out, &r); err != nil {
				t.Fatal(err)
			}
			if !tc.ok(r) {
				t.Errorf("result: %s", out)
			}
			if tc.role != "idle" && r.CPU[b.Cgroup("server")] <= 0 {
				t.Errorf("no processor time: %s", out)
			}
			t.Logf("%s", out)
		})
	}
}
