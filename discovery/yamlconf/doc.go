// SPDX-License-Identifier: Apache-2.0

// Package yamlconf decodes YAML configuration strictly. Whatever a file has
// that was not asked for is an error: unknown and duplicate keys, wrong types,
// values out of range. Decoding goes on after an error, so that the user sees
// all of them at once, each with file, line, key, what was found and what is
// allowed.
//
// The package knows YAML and the types that configurations are made of; it
// knows nothing of any particular configuration. Decoders walk the document:
//
//	doc := yamlconf.Parse("mesh.yaml", data)
//	m := doc.Root().Map()
//	name := m.Required("name").Text()
//	m.Get("ports").List(func(v yamlconf.Value) { ports = append(ports, v.Port()) })
//	m.Done()
//	err := doc.Err()
package yamlconf
