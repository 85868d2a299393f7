// SPDX-License-Identifier: Apache-2.0

package yamlconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Document is a YAML file that is being decoded.
type Document struct {
	file     string
	root     *yaml.Node
	problems Problems
}

// Parse reads a file that has one YAML document. Bad syntax is a problem like
// any other: Root is then absent, and Err says why.
func Parse(file string, data []byte) *Document {
	d := &Document{file: file}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.problems = append(d.problems, &Problem{File: file, Found: "the file is empty"})
		return d
	case err != nil:
		d.problems = append(d.problems, syntaxProblem(file, err))
		return d
	}
	if n := doc.Content[0]; !isNull(n) {
		d.root = n
	} else {
		d.problems = append(d.problems, &Problem{File: file, Found: "the file is empty"})
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.problems = append(d.problems, syntaxProblem(file, err))
	default:
		d.problems = append(d.problems, &Problem{File: file, Line: second.Line, Column: 1, Found: "found a second YAML document", Allowed: "one document in a file"})
	}
	return d
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

func syntaxProblem(file string, err error) *Problem {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	p := &Problem{File: file, Found: text}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column = 1
		p.Found = text[len(m[0]):]
	}
	p.Found = "not YAML: " + p.Found
	return p
}

// Root is the document's top value; absent when the file could not be parsed.
func (d *Document) Root() Value { return Value{doc: d, node: d.root} }

// File is the name that problems carry.
func (d *Document) File() string { return d.file }

// Err returns all problems found so far as Problems, or nil.
func (d *Document) Err() error { return d.problems.err() }

func (d *Document) report(n *yaml.Node, key, found, allowed string) {
	p := &Problem{File: d.file, Key: key, Found: found, Allowed: allowed}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	d.problems = append(d.problems, p)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// describe says what a node is, in words for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		return "nothing"
	case "!!str":
		return fmt.Sprintf("%q", shortened(n.Value))
	case "!!int", "!!float":
		return "the number " + shortened(n.Value)
	case "!!bool":
		return "the boolean " + n.Value
	case "!!timestamp":
		return "the date " + shortened(n.Value)
	}
	return fmt.Sprintf("%s %q", n.Tag, shortened(n.Value))
}

func shortened(s string) string {
	if r := []rune(s); len(r) > 80 {
		return string(r[:80]) + "…"
	}
	return s
}
