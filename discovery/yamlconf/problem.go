// SPDX-License-Identifier: Apache-2.0

package yamlconf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrInvalid is what every error of this package is (errors.Is).
var ErrInvalid = errors.New("configuration is invalid")

// Problem is one thing wrong with a configuration.
type Problem struct {
	File string `json:"file"`
	// Line and Column begin with 1; 0 when the problem has no place in the
	// file.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Key is the path of the key, such as "services[2].ports[0].port".
	Key string `json:"key,omitempty"`
	// Found and Allowed describe what the file has and what it may have
	// there; Allowed may be empty.
	Found   string `json:"found"`
	Allowed string `json:"allowed,omitempty"`
}

func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Found)
	if p.Allowed != "" {
		b.WriteString("; allowed: " + p.Allowed)
	}
	return b.String()
}

// Is reports that a problem is ErrInvalid.
func (p *Problem) Is(target error) bool { return target == ErrInvalid }

// Problems are all problems found, in order of files and lines. errors.As
// gets them out of an error of this package.
type Problems []*Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes each problem visible to errors.Is and errors.As.
func (p Problems) Unwrap() []error {
	out := make([]error, len(p))
	for i := range p {
		out[i] = p[i]
	}
	return out
}

// Join gathers the problems of several errors, nil ones included, into one;
// nil if there are none. An error that is none of this package's becomes a
// problem of the file.
func Join(file string, errs ...error) error {
	var all Problems
	for _, err := range errs {
		var several Problems
		var one *Problem
		switch {
		case err == nil:
		case errors.As(err, &several):
			all = append(all, several...)
		case errors.As(err, &one):
			all = append(all, one)
		default:
			all = append(all, &Problem{File: file, Found: err.Error()})
		}
	}
	return all.err()
}

func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	files := make(map[string]int) // in order of appearance
	for _, problem := range p {
		if _, ok := files[problem.File]; !ok {
			files[problem.File] = len(files)
		}
	}
	slices.SortStableFunc(p, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(files[a.File], files[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return p
}
