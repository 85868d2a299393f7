// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/tests/bench/load"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "role" {
		if err := role(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestJudge(t *testing.T) {
	higher := figure{"throughput", "GB/s", true, bestPeer, 1.5}
	lower := figure{"cpu", "s", false, bestPeer, 0.7}
	one := figure{"connections", "1/s", true, "envoy-h2", 2}
	fixed := figure{"memory", "KiB", false, absolute, 2}
	for _, tc := range []struct {
		name    string
		figure  figure
		medians map[string]float64
		against string
		ratio   float64
		met     bool
	}{
		{"the best is the highest", higher, map[string]float64{"meshproxy": 3, "haproxy": 1, "envoy-h2": 2}, "envoy-h2", 1.5, true},
		{"direct is no peer", higher, map[string]float64{"meshproxy": 3, "direct": 100, "haproxy": 1}, "haproxy", 3, true},
		{"the best is the lowest", lower, map[string]float64{"meshproxy": 3, "haproxy": 4, "envoy-h2": 9}, "haproxy", 0.75, false},
		{"a peer by name", one, map[string]float64{"meshproxy": 300, "haproxy": 900, "envoy-h2": 100}, "envoy-h2", 3, true},
		{"that peer is missing", one, map[string]float64{"meshproxy": 300, "haproxy": 1}, "envoy-h2", 0, false},
		{"absolute", fixed, map[string]float64{"meshproxy": 2, "haproxy": 30}, "", 0, true},
		{"absolute, missed", fixed, map[string]float64{"meshproxy": 2.1}, "", 0, false},
		{"nothing at all", figure{"allocations", "per read", false, absolute, none}, map[string]float64{"meshproxy": 0}, "", 0, true},
		{"not nothing", figure{"allocations", "per read", false, absolute, none}, map[string]float64{"meshproxy": 1}, "", 0, false},
		{"not measured", lower, map[string]float64{"haproxy": 4}, "haproxy", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := tc.figure.judge(tc.medians, "")
			if o.Against != tc.against || o.Met == nil || *o.Met != tc.met {
				t.Errorf("outcome: %+v, met %v", o, *o.Met)
			}
			switch {
			case tc.ratio == 0 && o.Ratio != nil:
				t.Errorf("ratio %g, want none", *o.Ratio)
			case tc.ratio != 0 && (o.Ratio == nil || *o.Ratio != tc.ratio):
				t.Errorf("ratio %v, want %g", o.Ratio, tc.ratio)
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{7}, 7},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(tc.values); got != tc.want {
			t.Errorf("median of %v is %g, want %g", tc.values, got, tc.want)
		}
	}
}

func TestNotes(t *testing.T) {
	if _, err := readNotes(); err != nil {
		t.Error(err)
	}
}

// TestMeasure runs the benchmark with the peers that need nothing installed.
func TestMeasure(t *testing.T) {
	s, err := newSite(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	s.descriptors = 4096
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tests", "bench"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := plan{rounds: 1, idle: 50, window: load.Window{Warm: 20 * time.Millisecond, Length: 500 * time.Millisecond}}
	measureSuite(t, s, p, dir, nodeSuite, "go-tls", direct{}, tlsPair{})
	measureSuite(t, s, p, dir, localSuite, "unix", localTCP{}, localUnix{})
	text, err := os.ReadFile(filepath.Join(dir, "BENCHMARKS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| rtt_1_p50 |", "| local_ping_64_p50 |", "| local_ping_64_one_cpu_p50 |", "a note"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("BENCHMARKS.md lacks %q", want)
		}
	}
}

func measureSuite(t *testing.T, s *site, p plan, dir string, of *suite, name string, peers ...contender) {
	t.Helper()
	h := &harness{suite: of, site: s, samples: samples{}, broken: make(map[string]bool), peers: peers, plan: p}
	if err := h.measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(h.failures) > 0 {
		t.Fatal(h.failures)
	}
	all := h.samples.outcomes(of, map[string]string{"rtt_1_p50": "a note"})
	for _, o := range all {
		if o.Name == "rss_1000_workloads" || o.Name == "copy_path_allocations" {
			continue // meshproxy's alone
		}
		if strings.Contains(o.Name, "_two_cpus") && runtime.NumCPU() < 2 {
			continue
		}
		if v := o.Peers[name]; v <= 0 {
			t.Errorf("%s of %s is %g", o.Name, name, v)
		}
	}
	if err := write(dir, of, describe(t.Context(), s, h.peers, p), all); err != nil {
		t.Fatal(err)
	}
}

// TestManyWorkloads plays the workloads without a mesh.
func TestManyWorkloads(t *testing.T) {
	s, err := newSite(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	end, err := playMany(t.Context(), s, 7)
	defer end()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.a.Cgroup("many", "6")); err != nil {
		t.Errorf("the last workload has no cgroup: %v", err)
	}
	if got := strings.Count(manyMesh(s, 7), "\n"); got != 3+1+14+2+7 {
		t.Errorf("mesh of %d lines:\n%s", got, manyMesh(s, 7))
	}
}

func TestParseAllocations(t *testing.T) {
	for _, tc := range []struct {
		name, out string
		want      float64
		err       bool
	}{
		{"the most of several", "BenchmarkRead/up-2  100  17 ns/op  941 MB/s  0 B/op  0 allocs/op\nBenchmarkRead/down-2  100  17 ns/op  5 B/op  2 allocs/op\nPASS\n", 2, false},
		{"none", "BenchmarkRead-2  100  17 ns/op  0 B/op  0 allocs/op\n", 0, false},
		{"no such benchmark", "PASS\nok  \tx\t0.1s\n", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseAllocations([]byte(tc.out))
			if got != tc.want || (err != nil) != tc.err {
				t.Errorf("got %g, %v", got, err)
			}
		})
	}
}

// TestSections: a suite's results take the place of its own only.
func TestSections(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tests", "bench"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, value := range []float64{1.5, 2.5} {
		for _, of := range []*suite{nodeSuite, consulSuite} {
			got := samples{meshproxyName: {"rtt_1_p50": {value}}}
			if err := write(dir, of, machine{Kernel: of.name}, got.outcomes(of, nil)); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "BENCHMARKS.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Linux nodes\n", "Linux consul\n", "\n| rtt_1_p50 | µs | 2.5 |", "\n| consul_rtt_1_p50 | µs | 2.5 |", nodeSuite.heading(), consulSuite.heading()} {
		if n := strings.Count(string(text), want); n != 1 {
			t.Errorf("BENCHMARKS.md has %q %d times:\n%s", want, n, text)
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "tests", "bench", "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []outcome
	if err := json.Unmarshal(data, &all); err != nil || len(all) != len(nodeFigures)+len(consulSuite.figures) {
		t.Errorf("results.json has %d figures: %v", len(all), err)
	}
}
