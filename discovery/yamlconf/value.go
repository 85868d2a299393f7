// SPDX-License-Identifier: Apache-2.0

package yamlconf

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Value is a place in a document. The accessors report what is wrong and then
// return a zero value, so decoders need not check; an absent value yields zero
// values without a problem.
type Value struct {
	doc  *Document
	node *yaml.Node // nil: absent
	key  string
}

// Present reports whether the document has the value.
func (v Value) Present() bool { return v.node != nil }

// Key is the path of the value, such as "services[2].name".
func (v Value) Key() string { return v.key }

// Position is "file:line" for messages about another value.
func (v Value) Position() string {
	if v.doc == nil || v.node == nil {
		return ""
	}
	return fmt.Sprintf("%s:%d", v.doc.file, v.node.Line)
}

// Reject reports a problem with the value: what was found, and what would be
// allowed, which may be empty.
func (v Value) Reject(found, allowed string) {
	if v.doc != nil {
		v.doc.report(v.node, v.key, found, allowed)
	}
}

// Rejectf is Reject without an allowed part.
func (v Value) Rejectf(format string, args ...any) { v.Reject(fmt.Sprintf(format, args...), "") }

// reject reports the value itself as not allowed.
func (v Value) reject(allowed string) {
	v.Reject("found "+describe(resolve(v.node)), allowed)
}

// IsMap and IsList report what the value is; both are false for an absent one.
func (v Value) IsMap() bool { return v.is(yaml.MappingNode) }

// IsList reports whether the value is a list.
func (v Value) IsList() bool { return v.is(yaml.SequenceNode) }

func (v Value) is(kind yaml.Kind) bool {
	n := resolve(v.node)
	return n != nil && n.Kind == kind
}

// List calls each for the items of a list and returns their number.
func (v Value) List(each func(Value)) int {
	if v.node == nil {
		return 0
	}
	n := resolve(v.node)
	if n.Kind != yaml.SequenceNode {
		v.reject("a list")
		return 0
	}
	for i, item := range n.Content {
		each(Value{doc: v.doc, node: item, key: fmt.Sprintf("%s[%d]", v.key, i)})
	}
	return len(n.Content)
}

// Map begins to decode a mapping; Done ends it.
func (v Value) Map() *Map {
	m := &Map{value: v, asked: make(map[string]bool)}
	if v.node == nil {
		return m
	}
	n := resolve(v.node)
	if n.Kind != yaml.MappingNode {
		v.reject("a mapping")
		return m
	}
	m.fields = make(map[string]field, len(n.Content)/2)
	m.read(n, true)
	return m
}

// Map is a mapping that is being decoded.
type Map struct {
	value  Value
	fields map[string]field // nil: absent or not a mapping
	order  []string
	asked  map[string]bool
	known  []string // asked, in order
	merges int
}

type field struct{ key, value *yaml.Node }

// maxMerges bounds the mappings merged into one; an anchor may contain itself.
const maxMerges = 100

func (m *Map) read(n *yaml.Node, own bool) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), n.Content[i+1]
		switch before, twice := m.fields[k.Value]; {
		case k.Kind != yaml.ScalarNode:
			m.value.doc.report(k, m.value.key, "found "+describe(k)+" as a key", "a string")
		case k.Tag == "!!merge":
		case !twice:
			m.order = append(m.order, k.Value)
			m.fields[k.Value] = field{k, v}
		case own:
			m.value.doc.report(k, m.path(k.Value), fmt.Sprintf("the key is there twice, first in line %d", before.key.Line), "")
		}
	}
	// The mapping's own keys go before merged ones, and earlier merged
	// mappings before later ones (yaml.org/type/merge.html).
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := resolve(n.Content[i]); k.Kind == yaml.ScalarNode && k.Tag == "!!merge" {
			m.merge(n.Content[i+1])
		}
	}
}

// merge reads the mappings of a "<<" key.
func (m *Map) merge(v *yaml.Node) {
	n := resolve(v)
	if m.merges++; m.merges > maxMerges {
		if m.merges == maxMerges+1 {
			m.value.doc.report(v, m.path("<<"), fmt.Sprintf("found more than %d merged mappings", maxMerges), "")
		}
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		m.read(n, false)
	case yaml.SequenceNode:
		for _, item := range n.Content {
			m.merge(item)
		}
	default:
		m.value.doc.report(v, m.path("<<"), "found "+describe(n), "a mapping or a list of mappings")
	}
}

func (m *Map) path(key string) string {
	if m.value.key == "" {
		return key
	}
	return m.value.key + "." + key
}

// Value is the mapping itself, to report problems that concern it as a whole.
func (m *Map) Value() Value { return m.value }

// Get returns the value of a key, which may be absent. A key without a value
// is reported.
func (m *Map) Get(key string) Value {
	if !m.asked[key] {
		m.asked[key] = true
		m.known = append(m.known, key)
	}
	f, ok := m.fields[key]
	if !ok {
		return Value{doc: m.value.doc, key: m.path(key)}
	}
	if isNull(resolve(f.value)) {
		m.value.doc.report(f.key, m.path(key), "the key has no value", "a value, or no key")
		return Value{doc: m.value.doc, key: m.path(key)}
	}
	return Value{doc: m.value.doc, node: f.value, key: m.path(key)}
}

// Required is Get for a key that must be there.
func (m *Map) Required(key string) Value {
	v := m.Get(key)
	if _, there := m.fields[key]; !there && m.fields != nil {
		m.value.Reject(fmt.Sprintf("%q is missing", key), "")
	}
	return v
}

// Has reports whether the mapping has the key.
func (m *Map) Has(key string) bool {
	_, ok := m.fields[key]
	return ok
}

// Keys returns the keys in the order of the file.
func (m *Map) Keys() []string { return m.order }

// Ignore declares keys that somebody else decodes.
func (m *Map) Ignore(keys ...string) {
	for _, k := range keys {
		m.asked[k] = true
	}
}

// Done reports the keys that nobody asked for.
func (m *Map) Done() {
	for _, key := range m.order {
		if m.asked[key] {
			continue
		}
		found := fmt.Sprintf("unknown key %q", key)
		if near := nearest(key, m.known); near != "" {
			found += fmt.Sprintf(" (did you mean %q?)", near)
		}
		m.value.doc.report(m.fields[key].key, m.value.key, found, strings.Join(m.known, ", "))
	}
}
