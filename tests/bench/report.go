// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed" // the notes
	"encoding/json"
	"fmt"
	"maps"
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
		if !slices.ContainsFunc(allFigures(), func(f figure) bool { return f.name == name }) {
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

// outcomes judges all figures of a suite.
func (s samples) outcomes(of *suite, notes map[string]string) []outcome {
	var all []outcome
	for _, f := range of.figures {
		medians := map[string]float64{}
		for peer, by := range s {
			if list := by[strings.TrimPrefix(strings.TrimPrefix(f.name, of.prefix), splicedPrefix)]; len(list) > 0 {
				medians[peer] = median(list)
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
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	head, body := rows(all)
	for _, row := range append([][]string{head}, body...) {
		fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	}
	_ = w.Flush() // to memory
	return b.String()
}
