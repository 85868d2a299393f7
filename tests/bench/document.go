// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const introduction = `# Benchmarks

Written by ` + "`make bench` and `make bench-consul`" + `, a section each; don't edit. What is measured, and how: the
comments in tests/bench.

All figures of a section are from one run on one machine: two network namespaces joined by a veth pair, client
and first proxy in one, second proxy and server in the other; each proxy is a process of its own. Peers and
figures come in random order in each round; a figure is the median of the rounds. Compare ratios: absolute
figures don't carry over to another machine. CPU is that of the proxies (both), not of client and server.
`

// write puts the results of a suite in the place of those before, in both
// files; what the other suites have there stays.
func write(dir string, of *suite, m machine, all []outcome) error {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, "BENCHMARKS.md")
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read BENCHMARKS.md: %w", err)
	}
	text := introduction
	for _, s := range suites {
		section := sectionOf(string(before), s)
		if s == of {
			section = s.section(m, all)
		}
		if section != "" {
			text += "\n" + section
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write BENCHMARKS.md: %w", err)
	}
	return writeResults(filepath.Join(dir, "tests", "bench", "results.json"), of, all)
}

func (s *suite) heading() string { return "## " + s.title + "\n" }

// sectionOf cuts a suite's section out of BENCHMARKS.md.
func sectionOf(text string, s *suite) string {
	_, section, found := strings.Cut(text, "\n"+s.heading())
	if !found {
		return ""
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return s.heading() + strings.TrimRight(section, "\n") + "\n"
}

// section renders a suite's section.
func (s *suite) section(m machine, all []outcome) string {
	var b strings.Builder
	b.WriteString(s.heading() + "\n" + s.text + "\n")
	b.WriteString(m.markdown())
	head, body := rows(all)
	b.WriteString("\n| " + strings.Join(head, " | ") + " |\n|" + strings.Repeat("---|", len(head)) + "\n")
	for _, row := range body {
		b.WriteString("| " + strings.Join(row, " | ") + " |\n")
	}
	var notes strings.Builder
	for _, o := range all {
		if o.Note != "" {
			fmt.Fprintf(&notes, "- **%s**: %s\n", o.Name, o.Note)
		}
	}
	if notes.Len() > 0 {
		b.WriteString("\nNotes:\n\n" + notes.String())
	}
	return b.String()
}

// writeResults writes an array with an object a figure.
func writeResults(path string, of *suite, all []outcome) error {
	var before []outcome
	switch data, err := os.ReadFile(path); {
	case err == nil:
		if err := json.Unmarshal(data, &before); err != nil {
			return fmt.Errorf("parse results: %w", err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read results: %w", err)
	}
	var merged []outcome
	for _, s := range suites {
		if s == of {
			merged = append(merged, all...)
			continue
		}
		for _, o := range before {
			if slices.ContainsFunc(s.figures, func(f figure) bool { return f.name == o.Name }) {
				merged = append(merged, o)
			}
		}
	}
	data, err := json.MarshalIndent(merged, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
