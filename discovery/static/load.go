// SPDX-License-Identifier: Apache-2.0

package static

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/yamlconf"
)

// MaxFileSize bounds a file; a larger one is a mistake.
const MaxFileSize = 64 << 20

var errNoFiles = errors.New("the static source has no files")

// content is a file as it was read.
type content struct {
	File
	data []byte
	err  error
}

// Load reads and checks the files once. The error has all problems
// (yamlconf.Problems), those of reading the files included.
func Load(opts Options) (discovery.Update, error) {
	opts = opts.withDefaults()
	return decode(opts, read(opts.Files))
}

func read(files []File) []content {
	out := make([]content, len(files))
	for i, f := range files {
		data, err := readFile(f.Path)
		out[i] = content{f, data, err}
	}
	return out
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("the file does not exist")
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file")
	case info.Size() > MaxFileSize:
		return nil, fmt.Errorf("the file has %d bytes; allowed: %d", info.Size(), MaxFileSize)
	}
	return os.ReadFile(path)
}

// decode makes one update of all files.
func decode(opts Options, files []content) (discovery.Update, error) {
	if len(files) == 0 {
		return discovery.Update{}, errNoFiles
	}
	d := newDecoder(opts)
	var documents []*yamlconf.Document
	var tops []*yamlconf.Map
	var errs []error
	for _, f := range files {
		if f.err != nil {
			errs = append(errs, &yamlconf.Problem{File: f.Path, Found: f.err.Error()})
			continue
		}
		doc := yamlconf.Parse(f.Path, f.data)
		top := doc.Root().Map()
		if f.Partial {
			top.Ignore(top.Keys()...)
		}
		documents, tops = append(documents, doc), append(tops, top)
	}
	d.decode(tops)
	for _, doc := range documents {
		errs = append(errs, doc.Err())
	}
	if err := yamlconf.Join("", errs...); err != nil {
		return discovery.Update{}, err
	}
	d.sort()
	return d.out, nil
}

// decoder gathers what the files say. Its maps hold what was decoded together
// with its place, to find what contradicts it elsewhere.
type decoder struct {
	opts            Options
	nodes           map[string]*node
	byAddress       map[string]*node // nodes by address; nil where two share one
	workloads       map[mesh.Name]*workload
	services        map[mesh.Name]*service
	policies        map[mesh.Name]string // place
	selectors       map[mesh.Selector]taken
	ownPorts        map[uint16]taken
	claimed         map[string]taken // virtual IPs and hostnames
	listening       map[listenKey]listening
	authorizationAt string // its place
	out             discovery.Update
}

// taken is something that a thing of that name and place has.
type taken struct {
	by    mesh.Name
	place string
}

func newDecoder(opts Options) *decoder {
	d := &decoder{
		opts:      opts,
		nodes:     make(map[string]*node),
		byAddress: make(map[string]*node),
		workloads: make(map[mesh.Name]*workload),
		services:  make(map[mesh.Name]*service),
		policies:  make(map[mesh.Name]string),
		selectors: make(map[mesh.Selector]taken),
		ownPorts:  make(map[uint16]taken),
		claimed:   make(map[string]taken),
		listening: make(map[listenKey]listening),
	}
	d.thisNode()
	return d
}

// decode goes through the sections of all files in the order in which they
// refer to each other.
func (d *decoder) decode(tops []*yamlconf.Map) {
	each := func(key string, decode func(*yamlconf.Map)) {
		for _, top := range tops {
			top.Get(key).List(func(v yamlconf.Value) {
				m := v.Map()
				decode(m)
				m.Done()
			})
		}
	}
	each(KeyNodes, d.node)
	each(KeyWorkloads, d.workload)
	each(KeyServices, d.service)
	each(KeyPolicies, d.policy)
	for _, top := range tops {
		d.authorization(top.Get(KeyAuthorization))
		top.Done()
	}
	d.checkUpstreams()
}

func (d *decoder) warnf(v yamlconf.Value, format string, args ...any) {
	d.out.Warnings = append(d.out.Warnings, v.Position()+": "+v.Key()+": "+fmt.Sprintf(format, args...))
}

// name decodes the "name" and "namespace" keys.
func (d *decoder) name(m *yamlconf.Map) mesh.Name {
	n := mesh.Name{Name: m.Required("name").Label(), Namespace: mesh.DefaultNamespace}
	if ns := m.Get("namespace"); ns.Present() {
		n.Namespace = ns.Label()
	}
	return n
}

// reference decodes "name" or "namespace/name"; the bare name is within the
// namespace given.
func reference(v yamlconf.Value, namespace string) mesh.Name {
	s := v.Text()
	if s == "" {
		return mesh.Name{}
	}
	n := mesh.ParseName(s)
	if n.Name == s {
		n.Namespace = namespace
	}
	if !yamlconf.IsLabel(n.Name) || !yamlconf.IsLabel(n.Namespace) {
		v.Reject(fmt.Sprintf("found %q", s), `"name" or "namespace/name"`)
		return mesh.Name{}
	}
	return n
}
