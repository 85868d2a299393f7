// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"slices"
)

// suite is what is measured in one run. It has a section of its own in
// BENCHMARKS.md.
type suite struct {
	name, title string
	// text says what is special about it.
	text string
	// figures are its table. Their names begin with prefix, which those of
	// values do not.
	figures []figure
	prefix  string
	// choose finds out which peers are there, of those that are asked for.
	choose func(ctx context.Context, h *harness)
	// round measures all of them once.
	round func(ctx context.Context, h *harness) error
	// finish measures what needs no peers.
	finish func(ctx context.Context, h *harness) error
	// starts are the probes of a peer: those of one group share the proxies of
	// one start.
	starts func(p peer) [][]probe
	// beside measures what is no probe, after the probes of a peer.
	beside func(ctx context.Context, h *harness, p peer) error
}

var (
	nodeSuite = &suite{
		name: "nodes", title: "From node to node",
		text: `"direct" has neither proxy nor encryption. Memory per idle connection is that of the hungrier proxy of the
two. "spliced" figures are meshproxy's with spliceHops: auto, beside "unspliced", its own without.
`,
		figures: nodeFigures, choose: chooseNodes, round: measurePeers, finish: countAllocations,
		starts: nodeStarts, beside: manyBeside,
	}
	suites = []*suite{nodeSuite, localSuite, consulSuite}
)

func allFigures() (all []figure) {
	for _, s := range suites {
		all = append(all, s.figures...)
	}
	return all
}

func nodeStarts(p peer) [][]probe {
	switch p.name() {
	case (direct{}).name():
		return [][]probe{probes}
	case splicedName:
		// What else there is does not depend on the hop.
		return [][]probe{slices.DeleteFunc(slices.Clone(probes), func(pr probe) bool { return pr.name == "beside bulk" })}
	}
	return [][]probe{probes, {idleProbe}}
}

func chooseNodes(ctx context.Context, h *harness) {
	_, noHAProxy := os.Stat(haproxyPath)
	_, noProduct := os.Stat(h.site.product)
	h.add(direct{}, nil)
	h.add(tlsPair{}, nil)
	h.add(haproxy{}, noHAProxy)
	h.add(meshproxy{}, noProduct)
	h.add(meshproxy{spliced: true}, noProduct)
	var noEnvoy error
	if h.wants(envoy{}.name()) || h.wants(envoy{connect: true}.name()) {
		h.site.envoy, noEnvoy = fetchEnvoy(ctx)
	}
	h.add(envoy{}, noEnvoy)
	h.add(envoy{connect: true}, noEnvoy)
}

func manyBeside(ctx context.Context, h *harness, p peer) error {
	if p.name() != meshproxyName {
		return nil
	}
	return h.measureWorkloads(ctx)
}

func countAllocations(ctx context.Context, h *harness) error {
	if !h.has(meshproxyName) {
		return nil
	}
	n, err := copyAllocations(ctx)
	if err == nil {
		h.samples.add(meshproxyName, values{"copy_path_allocations": n})
	}
	return err
}
