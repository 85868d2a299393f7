// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"reflect"
	"slices"
)

// Setting is a key with its value.
type Setting struct {
	Key string `json:"key"`
	// Value is what YAML would hold: a text, a number, or a list.
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// Settings returns all keys in the order of the reference. Nothing in it is
// secret: keys of leaves are named by their files.
func (c *Config) Settings() []Setting {
	settings := make([]Setting, len(table))
	for i := range table {
		settings[i] = Setting{Key: table[i].name, Value: shown(&table[i], c), Origin: c.Origin(table[i].name)}
	}
	return settings
}

// shown is a key's value as YAML would hold it.
func shown(row *key, c *Config) any {
	field := row.field(c)
	items := field.get()
	if field.list {
		return items
	}
	return items[0]
}

// KeyDoc describes a key.
type KeyDoc struct {
	Key      string `json:"key"`
	Default  any    `json:"default"` // as Setting.Value
	Doc      string `json:"doc"`
	Accepts  string `json:"accepts"`
	Restart  bool   `json:"restart"`            // a change needs one
	Variable string `json:"variable,omitempty"` // sets it, too
}

// Reference describes all keys, from the table that they are read by.
func Reference() ([]KeyDoc, error) {
	c := new(Config)
	if err := c.apply(defaults()); err != nil {
		return nil, err
	}
	docs := make([]KeyDoc, len(table))
	for i := range table {
		row := &table[i]
		field := row.field(c)
		docs[i] = KeyDoc{
			Key: row.name, Default: shown(row, c), Doc: row.doc, Accepts: accepts(&field), Restart: row.restart,
		}
		if row.standard == HostName {
			docs[i].Default = HostName
		}
		if row.standard == "" && !field.list {
			docs[i].Default = ""
		}
		if field.fields == nil {
			docs[i].Variable = envName(row.name)
		}
	}
	return docs, nil
}

func accepts(field *value) string {
	if field.list {
		return "a list, each " + field.want
	}
	return field.want
}

// InForce returns what a node that was started with one configuration has in
// force after it has read another one: of that, the keys that need no restart.
func (c *Config) InForce(started *Config) *Config {
	next := *c
	next.origins = maps.Clone(c.origins)
	for i := range table {
		row := &table[i]
		if !row.restart {
			continue
		}
		row.field(&next).take(row.field(started).at)
		if origin, ok := started.origins[row.name]; ok {
			next.origins[row.name] = origin
		} else {
			delete(next.origins, row.name)
		}
	}
	return &next
}

// Change is a key whose value differs.
type Change struct {
	Key      string
	Old, New any
	// Restart: the new value takes effect after a restart only.
	Restart bool
}

// Diff returns the keys in which two configurations differ.
func Diff(before, after *Config) []Change {
	var changes []Change
	for i := range table {
		row := &table[i]
		a, b := row.field(before).get(), row.field(after).get()
		if !slices.EqualFunc(a, b, sameItem) {
			changes = append(changes, Change{
				Key: row.name, Old: shown(row, before), New: shown(row, after), Restart: row.restart,
			})
		}
	}
	if before.InlineMesh != after.InlineMesh && !slices.ContainsFunc(changes, func(c Change) bool {
		return c.Key == "sources.static.files"
	}) {
		changes = append(changes, Change{
			Key: "sources.static.files", Old: before.MeshFiles(), New: after.MeshFiles(),
		})
	}
	return changes
}

func sameItem(a, b any) bool { return reflect.DeepEqual(a, b) }
