// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consul"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// ErrInvalid is what the errors of Load, Parse and Validate are (errors.Is);
// each is a yamlconf.Problems with all that is wrong.
var ErrInvalid = yamlconf.ErrInvalid

// Load reads the file at path ("" means none), the variables in env
// ("NAME=value" each, as os.Environ returns them) and the flags that were
// given (flags may be nil). Flags win over variables, variables over the file.
func Load(path string, env []string, flags *pflag.FlagSet) (*Config, error) {
	var f file
	var fileErr error
	if path != "" {
		f, fileErr = readFile(path)
	}
	variables, envErr := readEnv(env)
	return assemble(path, f, variables, readFlags(flags), fileErr, envErr)
}

// Parse reads a configuration from its text alone; name stands for the file in
// what is said about it.
func Parse(name string, text []byte) (*Config, error) {
	return assemble(name, parseFile(name, text), nil, nil)
}

// Default returns the configuration of an empty file.
func Default() (*Config, error) { return Load("", nil, nil) }

// assemble puts the layers over each other and checks the outcome.
func assemble(path string, f file, variables, flags layer, problems ...error) (*Config, error) {
	// Each layer is checked on its own, too: what is overridden today is in
	// force tomorrow.
	problems = append(problems, new(Config).apply(f.layer))
	if f.doc != nil {
		problems = append([]error{f.doc.Err()}, problems...)
	}
	problems = append(problems, new(Config).apply(variables), new(Config).apply(flags))
	if err := yamlconf.Join(path, problems...); err != nil {
		return nil, err
	}
	v := viper.New()
	for _, l := range []layer{defaults(), f.layer, variables, flags} {
		if err := v.MergeConfigMap(l.tree()); err != nil {
			return nil, yamlconf.Join(path, err)
		}
	}
	c := &Config{File: path, InlineMesh: f.inlineMesh, digest: f.digest, origins: make(map[string]string)}
	merged := make(layer, len(table))
	for i := range table {
		merged[table[i].name], _ = v.Get(table[i].name).([]raw)
	}
	for _, step := range []func() error{
		func() error { return c.apply(merged) }, c.complete, c.Validate,
	} {
		if err := step(); err != nil {
			return nil, yamlconf.Join(path, err)
		}
	}
	return c, nil
}

// defaults is the layer below all others.
func defaults() layer {
	l := make(layer)
	for i := range table {
		row := &table[i]
		if row.standard != "" && row.standard != HostName {
			l[row.name] = split(row, row.standard, OriginDefault)
		}
	}
	return l
}

// tree nests the keys, as viper wants them.
func (l layer) tree() map[string]any {
	root := make(map[string]any)
	for name, items := range l {
		segments := strings.Split(name, ".")
		at := root
		for _, s := range segments[:len(segments)-1] {
			next, ok := at[s].(map[string]any)
			if !ok {
				next = make(map[string]any)
				at[s] = next
			}
			at = next
		}
		at[segments[len(segments)-1]] = items
	}
	return root
}

// apply sets the fields that the layer names, and reports all that it cannot:
// what stands in a file to the file's document, the rest to the caller.
func (c *Config) apply(l layer) error {
	var problems yamlconf.Problems
	for i := range table {
		row := &table[i]
		items := l[row.name]
		if items == nil {
			continue
		}
		field := row.field(c)
		field.reset()
		for _, item := range items {
			err := field.set(item)
			if err == nil {
				continue
			}
			found := fmt.Sprintf("found %q", item.text)
			if !errors.As(err, new(wantError)) {
				found = err.Error()
			}
			if item.at.Present() {
				item.at.Reject(found, field.want)
			} else {
				problems = append(problems, &yamlconf.Problem{
					File: item.origin, Key: row.name, Found: found, Allowed: field.want,
				})
			}
		}
		if c.origins != nil && len(items) > 0 {
			c.origins[row.name] = items[0].origin
		}
	}
	return joined(problems)
}

// joined is nil for no problems; a nil Problems in an error would not be.
func joined(p yamlconf.Problems) error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// complete fills in what follows from elsewhere.
func (c *Config) complete() error {
	if c.Node.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		name, _, _ = strings.Cut(strings.ToLower(name), ".")
		if err := checkName(name); err != nil {
			return &yamlconf.Problem{
				File: c.place("node.name"), Key: "node.name",
				Found: fmt.Sprintf("not set, and the host's name %q will not do", name), Allowed: find("node.name").field(c).want,
			}
		}
		c.Node.Name = name
	}
	if c.Identity.Provider == ProviderConsul && c.Origin("node.trustDomain") == OriginDefault {
		c.Node.TrustDomain = spiffeid.TrustDomain{} // Consul's has a UUID of its own
	}
	if c.Sources.Consul.Enabled && c.Origin("listeners.inboundMTLS") == OriginDefault {
		c.Listeners.InboundMTLS = netip.AddrPortFrom(netip.IPv6Unspecified(), consul.DefaultInboundPort)
	}
	if c.Identity.Embedded.Dir == "" {
		c.Identity.Embedded.Dir = filepath.Join(c.StateDir, "ca")
	}
	dir := filepath.Dir(c.File)
	if c.File == "" {
		dir = ""
	}
	paths := []*string{
		&c.Identity.Embedded.Dir, &c.Identity.Files.Dir, &c.Identity.Files.Bundle,
		&c.Consul.TokenFile, &c.Consul.CAFile, &c.Consul.CertFile, &c.Consul.KeyFile,
	}
	for i := range c.Identity.Files.Workloads {
		paths = append(paths, &c.Identity.Files.Workloads[i].Cert, &c.Identity.Files.Workloads[i].Key)
	}
	for i := range c.Sources.StaticFiles {
		paths = append(paths, &c.Sources.StaticFiles[i])
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	return nil
}
