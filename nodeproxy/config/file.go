// SPDX-License-Identifier: Apache-2.0

package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// maxFileBytes bounds the configuration; a mesh of 10,000 endpoints takes a
// tenth of it.
const maxFileBytes = 64 << 20

// layer is what one place sets: items by key.
type layer map[string][]raw

// file is a configuration file. Its document has all that is wrong with its
// shape: unknown keys, keys that are there twice, wrong types.
type file struct {
	doc        *yamlconf.Document
	layer      layer
	inlineMesh bool
	digest     digest
}

func readFile(path string) (file, error) {
	text, err := readBounded(path)
	if err != nil {
		return file{}, &yamlconf.Problem{File: path, Found: "read configuration: " + withoutPath(err).Error()}
	}
	return parseFile(path, text), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err == nil && len(text) > maxFileBytes {
		err = fmt.Errorf("more than %d MiB", maxFileBytes>>20)
	}
	return text, err
}

// withoutPath drops the path from an error that is said with its path anyway.
func withoutPath(err error) error {
	if wrapped := (*os.PathError)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

func parseFile(name string, text []byte) file {
	f := file{doc: yamlconf.Parse(name, text), layer: make(layer), digest: sha256.Sum256(text)}
	f.section("", f.doc.Root())
	return f
}

// section reads a mapping whose keys begin with prefix.
func (f *file) section(prefix string, v yamlconf.Value) {
	m := v.Map()
	for _, name := range below(prefix) {
		if row := find(prefix + name); row != nil {
			f.key(row, m.Get(name))
		} else {
			f.section(prefix+name+".", m.Get(name))
		}
	}
	if prefix == "" {
		for _, name := range meshSections {
			f.inlineMesh = m.Get(name).Present() || f.inlineMesh
		}
	}
	m.Done()
}

// key notes a key's items.
func (f *file) key(row *key, v yamlconf.Value) {
	if !v.Present() {
		return
	}
	field := row.field(new(Config))
	items := []raw{}
	if field.list {
		v.List(func(item yamlconf.Value) { items = append(items, read(&field, item)) })
	} else {
		items = append(items, read(&field, v))
	}
	// What could not be read is reported, and must not be once more.
	f.layer[row.name] = slices.DeleteFunc(items, func(r raw) bool { return r.text == "" && r.record == nil })
}

// read reads an item; it is empty when it could not be read.
func read(field *value, v yamlconf.Value) raw {
	r := raw{origin: v.Position(), at: v}
	switch {
	case field.kind == kindTree:
		r.text = v.Position()
	case field.kind == kindBool:
		r.text = strconv.FormatBool(v.Bool())
	case field.fields != nil:
		m := v.Map()
		record := make(map[string]string, len(field.fields))
		complete := true
		for _, name := range field.fields {
			record[name] = m.Required(name).Text()
			complete = complete && record[name] != ""
		}
		m.Done()
		if complete {
			r.record = record
		}
	case field.kind == kindInt:
		if n := v.Int(field.least, field.most); n != 0 { // no key accepts 0
			r.text = strconv.FormatInt(n, 10)
		}
	case field.kind == kindWords:
		r.text = v.OneOf(field.words...)
	case field.kind == kindAny:
		r.text = v.Scalar()
	default:
		r.text = v.Text()
	}
	return r
}

// find returns the key's row, or nil.
func find(name string) *key {
	for i := range table {
		if table[i].name == name {
			return &table[i]
		}
	}
	return nil
}

// below returns the next segments of the keys that begin with prefix.
func below(prefix string) []string {
	var names []string
	for i := range table {
		rest, ok := strings.CutPrefix(table[i].name, prefix)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, ".")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
