// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed" // the notes
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// notesJSON holds a note per figure, written by hand: why a target isn't
// reached, and where the time goes.
//
//go:embed notes.json
var notesJSON []byte

func readNotes() (map[string]string, error) {
	var notes map[string]string
	if err := json.Unmarshal(notesJSON, &notes); err != nil {
		return nil, fmt.Errorf("parse notes.json: %w", err)
	}
	for name := range notes {
		if !slices.ContainsFunc(figures, func(f figure) bool { return f.name == name }) {
			return nil, fmt.Errorf("parse notes.json: no figure %q", name)
		}
	}
	return notes, nil
}

// samples are all values by peer and figure.
type samples map[string]map[string][]float64

func (s samples) add(peer string, v values) {
	if s[peer] == nil {
		s[peer] = map[string][]float64{}
	}
	for name, x := range v {
		s[peer][name] = append(s[peer][name], x)
	}
}

// outcomes judges all figures.
func (s samples) outcomes(notes map[string]string) []outcome {
	var all []outcome
	for _, f := range figures {
		medians := map[string]float64{}
		for peer, by := range s {
			if len(by[f.name]) > 0 {
				medians[peer] = median(by[f.name])
			}
		}
		all = append(all, f.judge(medians, notes[f.name]))
	}
	return all
}

// header names the peers in the order of the columns.
func header(all []outcome) []string {
	names := map[string]bool{}
	for _, o := range all {
		for name := range o.Peers {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// rows renders outcomes as text.
func rows(all []outcome) (head []string, body [][]string) {
	peers := header(all)
	head = append([]string{"figure", "unit", meshproxyName}, peers...)
	head = append(head, "ratio", "target", "met")
	for _, o := range all {
		row := []string{o.Name, o.Unit, number(o.Ours)}
		for _, p := range peers {
			v, ok := o.Peers[p]
			if !ok {
				row = append(row, "")
				continue
			}
			row = append(row, number(&v))
		}
		row = append(row, number(o.Ratio), o.Target, metText(o.Met))
		body = append(body, row)
	}
	return head, body
}

func metText(met *bool) string {
	switch {
	case met == nil:
		return ""
	case *met:
		return "yes"
	}
	return "no"
}

// number writes three significant digits.
func number(v *float64) string {
	switch {
	case v == nil:
		return "-"
	case *v >= 1000:
		return fmt.Sprintf("%.0f", *v)
	}
	return fmt.Sprintf("%.3g", *v)
}

// table writes outcomes for a terminal.
func table(all []outcome) string {
	var b strings.Builder
	nodes, local := parts(all)
	for _, part := range [][]outcome{nodes, local} {
		if len(part) == 0 {
			continue
		}
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		head, body := rows(part)
		for _, row := range append([][]string{head}, body...) {
			fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
		}
		_ = w.Flush() // to memory
	}
	return b.String()
}

const introduction = `# Benchmarks

Written by ` + "`make bench`" + `; don't edit. What is measured, and how: the comments in tests/bench.

All figures are from one run on one machine. From node to node: two network namespaces joined by a veth pair, client and first
proxy in one, second proxy and server in the other; each proxy is a process of its own. Peers and figures
come in random order in each round; a figure is the median of the rounds. Compare ratios: absolute figures
don't carry over to another machine. "direct" has neither proxy nor encryption. CPU is that of the proxies
(both), not of client and server. Memory per idle connection is that of the hungrier proxy of the two.

`

// markdown renders BENCHMARKS.md.
func markdown(m machine, all []outcome) string {
	var b strings.Builder
	b.WriteString(introduction)
	b.WriteString(m.markdown())
	nodes, local := parts(all)
	if len(nodes) > 0 {
		b.WriteString("\n## From node to node\n\n")
		writeTable(&b, nodes)
	}
	if len(local) > 0 {
		b.WriteString(localIntroduction)
		writeTable(&b, local)
	}
	var notes strings.Builder
	for _, o := range all {
		if o.Note != "" {
			fmt.Fprintf(&notes, "- **%s**: %s\n", o.Name, o.Note)
		}
	}
	if notes.Len() > 0 {
		b.WriteString("\n## Notes\n\n" + notes.String())
	}
	return b.String()
}

// parts separates the two tables: they have other peers.
func parts(all []outcome) (nodes, local []outcome) {
	for _, o := range all {
		if strings.HasPrefix(o.Name, "local_") {
			local = append(local, o)
		} else {
			nodes = append(nodes, o)
		}
	}
	return nodes, local
}

const localIntroduction = `
## Between two workloads of one node

Two processes of one network namespace: by TCP over loopback, by a Unix socket, with one Envoy in between (no
encryption), and with a node of meshproxy, policy and telemetry on and ` + "`splicing: auto`" + `. Client and
server don't block and wait in epoll, as most servers do; "meshproxy-blocking" is a client that waits inside of
read(2), whose connections stay TCP. "by_64" is 64 connections at a time. CPU is that of all processes.

`

func writeTable(b *strings.Builder, all []outcome) {
	head, body := rows(all)
	b.WriteString("| " + strings.Join(head, " | ") + " |\n|" + strings.Repeat("---|", len(head)) + "\n")
	for _, row := range body {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
}

// writeResults writes an array with an object a figure.
func writeResults(path string, all []outcome) error {
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
