// SPDX-License-Identifier: Apache-2.0

package static

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meshproxy/meshproxy/discovery"
)

const (
	webFile  = "services: [{name: web, ports: [{port: 80}]}]\n"
	apiFile  = "services: [{name: api, ports: [{port: 80}]}]\n"
	badFile  = "services: [{name: web}]\n"
	deadline = time.Minute
)

// run starts the source and returns its updates.
func run(t *testing.T, opts Options) (*Source, <-chan discovery.Update) {
	t.Helper()
	s, updates, done := New(opts), make(chan discovery.Update), make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- s.Run(ctx, updates) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, updates
}

func next(t *testing.T, updates <-chan discovery.Update) discovery.Update {
	t.Helper()
	select {
	case u := <-updates:
		return u
	case <-time.After(deadline):
		t.Fatal("no update")
		panic("unreachable")
	}
}

// wantService waits for the update that has the service and nothing else.
// Errors before it are transient states of the file system.
func wantService(t *testing.T, updates <-chan discovery.Update, name string) {
	t.Helper()
	for {
		u := next(t, updates)
		if len(u.Services) == 1 && u.Services[0].Name.Name == name {
			return
		}
		if u.Err == nil {
			t.Fatalf("services %v, want %s", u.Services, name)
		}
	}
}

func wantErr(t *testing.T, updates <-chan discovery.Update, text string) {
	t.Helper()
	if u := next(t, updates); u.Err == nil || !strings.Contains(u.Err.Error(), text) || u.Services != nil {
		t.Fatalf("update %+v, want error %q", u, text)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReloadKinds(t *testing.T) {
	tests := []struct {
		name string
		// change replaces the content of the file at path, which is in a
		// directory of its own.
		change func(t *testing.T, path, content string)
	}{
		{"written in place", write},
		{"renamed over", func(t *testing.T, path, content string) {
			write(t, path+".new", content)
			must(t, os.Rename(path+".new", path))
		}},
		{"removed and made again", func(t *testing.T, path, content string) {
			must(t, os.Remove(path))
			write(t, path, content)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := testOptions(t, webFile)
			_, updates := run(t, opts)
			wantService(t, updates, "web")
			for _, step := range []struct{ content, service string }{{apiFile, "api"}, {webFile, "web"}, {apiFile, "api"}} {
				tt.change(t, opts.Files[0].Path, step.content)
				wantService(t, updates, step.service)
			}
		})
	}
}

// TestReloadConfigMap changes a file as the kubelet does: the file is a link
// through the link "..data", which is replaced by a rename.
func TestReloadConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(name, content string) {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		write(t, filepath.Join(dir, name, "mesh.yaml"), content)
		must(t, os.Symlink(name, filepath.Join(dir, "..tmp")))
		must(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", webFile)
	must(t, os.Symlink("..data/mesh.yaml", filepath.Join(dir, "mesh.yaml")))
	opts := testOptions(t)
	opts.Files = []File{{Path: filepath.Join(dir, "mesh.yaml")}}
	_, updates := run(t, opts)
	wantService(t, updates, "web")
	version("..2", apiFile)
	wantService(t, updates, "api")
	version("..3", webFile)
	must(t, os.RemoveAll(filepath.Join(dir, "..2")))
	wantService(t, updates, "web")
}

// TestReloadLinkedFile edits a file where a symbolic link leads, in another
// directory.
func TestReloadLinkedFile(t *testing.T) {
	opts := testOptions(t, webFile)
	link := filepath.Join(t.TempDir(), "link.yaml")
	must(t, os.Symlink(opts.Files[0].Path, link))
	real := opts.Files[0].Path
	opts.Files[0].Path = link
	_, updates := run(t, opts)
	wantService(t, updates, "web")
	write(t, real, apiFile)
	wantService(t, updates, "api")
}

func TestInvalidReload(t *testing.T) {
	opts := testOptions(t, webFile)
	path := opts.Files[0].Path
	_, updates := run(t, opts)
	wantService(t, updates, "web")
	for _, step := range []struct{ content, problem string }{
		{badFile, `"ports" is missing`},
		{"", "the file is empty"},
		{"services: [", "not YAML"},
	} {
		write(t, path+".new", step.content)
		must(t, os.Rename(path+".new", path))
		wantErr(t, updates, step.problem)
	}
	must(t, os.Remove(path))
	wantErr(t, updates, "the file does not exist")
	write(t, path, webFile)
	wantService(t, updates, "web")
}

func TestStartWithInvalidFile(t *testing.T) {
	opts := testOptions(t, badFile)
	_, updates := run(t, opts)
	wantErr(t, updates, `"ports" is missing`)
	write(t, opts.Files[0].Path, webFile)
	wantService(t, updates, "web")
}

func TestSameContentIsNoUpdate(t *testing.T) {
	opts := testOptions(t, webFile)
	path := opts.Files[0].Path
	_, updates := run(t, opts)
	wantService(t, updates, "web")
	// Not emptied first: that would be another content, if anybody looked then.
	again, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = again.WriteString(webFile)
	must(t, errors.Join(err, again.Close()))
	write(t, path+".unrelated", "x")
	must(t, os.Chtimes(path, time.Now(), time.Now()))
	// The next update is of the next change, not of these.
	write(t, path+".new", apiFile)
	must(t, os.Rename(path+".new", path))
	wantService(t, updates, "api")
}

func TestReloadOptions(t *testing.T) {
	opts := testOptions(t, webFile, apiFile)
	both := opts.Files
	opts.Files = both[:1]
	s, updates := run(t, opts)
	wantService(t, updates, "web")
	opts.Files = both[1:]
	s.Reload(opts)
	wantService(t, updates, "api")
	s.Reload(opts) // the options may matter although the files are the same
	wantService(t, updates, "api")
	// The other file is the one that is watched now.
	write(t, both[1].Path, webFile)
	wantService(t, updates, "web")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestPartialFileWaitsForReload: what is wrong elsewhere in the configuration
// keeps its part of the mesh from coming into force.
func TestPartialFileWaitsForReload(t *testing.T) {
	dir := t.TempDir()
	conf, mesh := filepath.Join(dir, "meshproxy.yaml"), filepath.Join(dir, "mesh.yaml")
	write(t, conf, webFile)
	write(t, mesh, "nodes: []\n")
	opts := Options{Files: []File{{Path: conf, Partial: true}, {Path: mesh}}}
	s, updates := run(t, opts)
	wantService(t, updates, "web")
	write(t, conf, apiFile)
	write(t, mesh, "nodes: [{name: a, address: 192.0.2.1}]\n") // read again, the other one is not
	wantService(t, updates, "web")
	s.Reload(opts)
	wantService(t, updates, "api")
}
