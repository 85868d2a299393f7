// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"

	"github.com/spf13/pflag"
)

// AddFlags adds a flag for each key, by the key's name. What they say is
// checked by Load, with everything else.
func AddFlags(flags *pflag.FlagSet) {
	for i := range table {
		row := &table[i]
		field := row.field(new(Config))
		if field.fields != nil {
			continue // as for variables
		}
		flags.Var(&flagValue{list: field.list, text: row.standard}, row.name, row.doc)
	}
}

// flagValue is the text of a flag. A list's flag may be repeated.
type flagValue struct {
	text string
	list bool
	set  bool
}

// String implements pflag.Value.
func (v *flagValue) String() string { return v.text }

// Set implements pflag.Value.
func (v *flagValue) Set(text string) error {
	if v.list && v.set {
		text = v.text + "," + text
	}
	v.text, v.set = text, true
	return nil
}

// Type implements pflag.Value. It is none of the names that viper reads
// meaning into.
func (v *flagValue) Type() string {
	if v.list {
		return "list"
	}
	return "value"
}

// readFlags reads the flags that were given.
func readFlags(flags *pflag.FlagSet) layer {
	l := make(layer)
	if flags == nil {
		return l
	}
	flags.Visit(func(f *pflag.Flag) {
		if _, ours := f.Value.(*flagValue); ours {
			row := find(f.Name)
			l[row.name] = split(row, strings.TrimSpace(f.Value.String()), "--"+f.Name)
		}
	})
	return l
}
