// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// figure is one number that is compared.
type figure struct {
	name, unit string
	// higher: more is better.
	higher bool
	// against is the peer that the target is relative to: bestPeer, a peer's
	// name, or absolute.
	against string
	// target is a factor, or an absolute value; 0 is no target.
	target float64
}

// none is a target of nothing at all.
const none = 1e-9

const (
	bestPeer = "best peer"
	absolute = ""
	// unspliced is meshproxy without spliced hops, as a peer of itself.
	unspliced = "unspliced"
)

// nodeFigures are those of two nodes, and what explains them.
var nodeFigures = []figure{
	{"throughput_up", "GB/s", true, bestPeer, 1.0},
	{"throughput_down", "GB/s", true, bestPeer, 1.0},
	{"cpu_per_gb_up", "s/GB", false, bestPeer, 0.9},
	{"cpu_per_gb_down", "s/GB", false, bestPeer, 0.9},
	{"rtt_beside_bulk_p50", "ms", false, bestPeer, 0.8},
	{"rtt_beside_bulk_p99", "ms", false, bestPeer, 0},
	{"rtt_1_p50", "µs", false, bestPeer, 1.0},
	{"rtt_1_p99", "µs", false, bestPeer, 0},
	{"rtt_1_cpu", "µs", false, bestPeer, 0},
	{"rtt_32_rate", "1/s", true, bestPeer, 1.5},
	{"rtt_32_p50", "µs", false, bestPeer, 0},
	{"rtt_32_p99", "µs", false, bestPeer, 0.7},
	{"rtt_32_cpu", "µs", false, bestPeer, 0},
	{"connections_rate", "1/s", true, "envoy-h2", 2.0},
	{"connections_p50", "µs", false, bestPeer, 0},
	{"connections_cpu", "µs", false, "envoy-h2", 0.5},
	{"rss_per_idle_connection", "KiB", false, absolute, 2},
	{"rss_1000_workloads", "MiB", false, absolute, 64},
	{"copy_path_allocations", "per read", false, absolute, none},
	{"spliced_rtt_1_p50", "µs", false, bestPeer, 0.85},
	{"spliced_rtt_32_rate", "1/s", true, bestPeer, 2.2},
	{"spliced_rtt_32_p99", "µs", false, bestPeer, 0.5},
	{"spliced_rtt_32_cpu", "µs", false, unspliced, 0},
	{"spliced_throughput_up", "GB/s", true, unspliced, 0},
	{"spliced_throughput_down", "GB/s", true, unspliced, 0},
	{"spliced_cpu_per_gb_up", "s/GB", false, unspliced, 1.0},
	{"spliced_cpu_per_gb_down", "s/GB", false, unspliced, 1.0},
	{"spliced_connections_rate", "1/s", true, unspliced, 0},
	{"spliced_connections_cpu", "µs", false, unspliced, 0},
}

// splicedPrefix is that of figures of the spliced hop; ours is splicedName's then,
// and meshproxy's own is called unspliced.
const splicedPrefix = "spliced_"

func (f figure) isSpliced() bool { return strings.HasPrefix(f.name, splicedPrefix) }

// outcome is a figure with its values, as results.json has it.
type outcome struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Ours is null when meshproxy wasn't measured, or failed.
	Ours *float64 `json:"ours"`
	// Peers are the medians of the others, "direct" among them.
	Peers map[string]float64 `json:"peers"`
	// Against is whom ratio and target refer to; empty for an absolute
	// target.
	Against string `json:"against,omitempty"`
	// Ratio is ours divided by that peer's.
	Ratio  *float64 `json:"ratio"`
	Target string   `json:"target,omitempty"`
	// Met is null when there is no target.
	Met  *bool  `json:"met"`
	Note string `json:"note,omitempty"`
}

// judge compares the medians of all peers.
func (f figure) judge(medians map[string]float64, note string) outcome {
	o := outcome{Name: f.name, Unit: f.unit, Peers: map[string]float64{}, Note: note}
	for name, v := range medians {
		switch {
		case name == meshproxyName && f.isSpliced():
			o.Peers[unspliced] = v
		case name == meshproxyName, name == splicedName && f.isSpliced():
			o.Ours = &v
		case name != splicedName:
			o.Peers[name] = v
		}
	}
	o.Target = f.targetText()
	if f.against != absolute {
		o.Against = f.reference(o.Peers)
	}
	if reference := o.Peers[o.Against]; o.Ours != nil && reference > 0 {
		ratio := *o.Ours / reference
		o.Ratio = &ratio
	}
	if f.target != 0 {
		met := f.met(o)
		o.Met = &met
	}
	return o
}

// reference names the peer that the ratio is with. Direct is none: it has no
// encryption. Nor is meshproxy itself.
func (f figure) reference(peers map[string]float64) string {
	if f.against != bestPeer {
		return f.against
	}
	best := ""
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		if name == (direct{}).name() || name == unspliced {
			continue
		}
		if best == "" || f.better(peers[name], peers[best]) {
			best = name
		}
	}
	return best
}

func (f figure) better(a, b float64) bool {
	if f.higher {
		return a > b
	}
	return a < b
}

func (f figure) met(o outcome) bool {
	value := o.Ratio
	if f.against == absolute {
		value = o.Ours
	}
	if value == nil {
		return false
	}
	return *value == f.target || f.better(*value, f.target)
}

func (f figure) targetText() string {
	sign := "≤"
	if f.higher {
		sign = "≥"
	}
	switch {
	case f.target == 0:
		return ""
	case f.target == none:
		return "0 " + f.unit
	case f.against == absolute:
		return fmt.Sprintf("%s %g %s", sign, f.target, f.unit)
	}
	return fmt.Sprintf("%s %g × %s", sign, f.target, f.against)
}

// median returns the middle of the values, or the mean of the two in the
// middle.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}
