// SPDX-License-Identifier: Apache-2.0

package diskcache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func snapshot(version uint64, services ...string) *mesh.Snapshot {
	in := mesh.BuildInput{Version: version, Built: time.Unix(1700000000, 0).UTC(), Sources: []mesh.SourceState{{Name: "consul", Ready: true}}}
	for _, n := range services {
		in.Services = append(in.Services, &mesh.Service{
			Name: mesh.ParseName(n), Source: "consul", Ports: []mesh.Port{{Port: 80}},
			Endpoints: []*mesh.Endpoint{{Address: netip.MustParseAddr("10.0.0.1"), Ports: []uint16{80}}},
		})
	}
	return mesh.Build(in)
}

// cache returns one in dir, and its log.
func cache(dir string) (*Cache, *bytes.Buffer) {
	var log bytes.Buffer
	return New(Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))}), &log
}

func loaded(t *testing.T, c *Cache) uint64 {
	t.Helper()
	in := c.Load()
	if in == nil {
		t.Fatal("nothing loaded")
	}
	return in.Version
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	c, log := cache(dir)
	if in := c.Load(); in != nil || log.Len() != 0 {
		t.Errorf("a node that is new: %+v, log %s", in, log)
	}
	want := snapshot(7, "web", "db")
	if err := c.Save(want); err != nil {
		t.Fatal(err)
	}
	in := c.Load()
	if in == nil || in.Version != 7 || !in.Built.Equal(want.Built()) || len(in.Services) != 2 || !in.Services[0].Endpoints[0].Equal(want.Services()[0].Endpoints[0]) {
		t.Errorf("loaded %+v", in)
	}
	info, err := os.Stat(filepath.Join(dir, "snapshot.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestDamagedFilesAreIgnored(t *testing.T) {
	dir := t.TempDir()
	c, log := cache(dir)
	path := filepath.Join(dir, "snapshot.json")
	if err := c.Save(snapshot(1, "web")); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)-5] ^= 1
	notJSON := file{path: path + ".x", kind: c.snapshot.kind, version: snapshotVersion, maxSize: 1 << 20}
	if err := notJSON.write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(notJSON.path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		content []byte
		log     string
	}{
		"empty":           {nil, "not a file of this kind"},
		"cut off":         {good[:len(good)/2], "does not match its checksum"},
		"one bit":         {flipped, "does not match its checksum"},
		"more at the end": {append(bytes.Clone(good), 'x'), "does not match its checksum"},
		"another kind":    {[]byte("hello world\n{}"), "not a file of this kind"},
		"a later version": {bytes.Replace(good, []byte(" 1 "), []byte(" 2 "), 1), "written by another version"},
		"not JSON":        {sealed, "unexpected end of JSON input"},
	} {
		t.Run(name, func(t *testing.T) {
			log.Reset()
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if in := c.Load(); in != nil {
				t.Errorf("loaded %+v", in)
			}
			if !strings.Contains(log.String(), tt.log) || !strings.Contains(log.String(), "starting without it") {
				t.Errorf("log %s", log)
			}
		})
	}
}

func TestSizeIsBounded(t *testing.T) {
	dir := t.TempDir()
	c, _ := cache(dir)
	if err := c.Save(snapshot(1, "web")); err != nil {
		t.Fatal(err)
	}
	small := New(Options{Dir: dir, MaxSize: 100})
	if err := small.Save(snapshot(2, "web")); !errors.Is(err, errTooLarge) {
		t.Errorf("saved: %v", err)
	}
	if small.Load() != nil {
		t.Error("loaded more than the limit")
	}
	if v := loaded(t, c); v != 1 {
		t.Errorf("version %d; the old file is gone", v)
	}
}

// TestDiskFull fills a file system of its own.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("diskcache-test", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c, _ := cache(dir)
	if err := c.Save(snapshot(1, "web")); err != nil {
		t.Fatal(err)
	}
	many := make([]string, 1000)
	for i := range many {
		many[i] = strings.Repeat("x", 50) + string(rune('a'+i%26)) + string(rune('a'+i/26))
	}
	if err := c.Save(snapshot(2, many...)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("saved on a full disk: %v", err)
	}
	if v := loaded(t, c); v != 1 {
		t.Errorf("version %d after the failure", v)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	if err := c.Save(snapshot(3, "web")); err != nil {
		t.Errorf("not usable after the failure: %v", err)
	}
}

func TestCrashLeavesOldFile(t *testing.T) {
	dir := t.TempDir()
	c, _ := cache(dir)
	if err := c.Save(snapshot(1, "web")); err != nil {
		t.Fatal(err)
	}
	// Half a file, as a crash before the rename leaves it.
	if err := os.WriteFile(c.snapshot.path+".tmp", []byte("meshproxy-snap"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := loaded(t, c); v != 1 {
		t.Errorf("version %d", v)
	}
	if err := c.Save(snapshot(2, "web")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := cache(t.TempDir())
		store := discovery.NewStore(mesh.Build(mesh.BuildInput{Sources: []mesh.SourceState{{Name: "consul"}}}))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx, store); close(done) }()
		synctest.Wait()
		if c.Load() != nil {
			t.Error("the empty snapshot of the start was written")
		}
		time.Sleep(DefaultInterval)
		store.Publish(snapshot(1, "web"))
		synctest.Wait()
		if v := loaded(t, c); v != 1 {
			t.Errorf("version %d, want 1 at once", v)
		}
		store.Publish(snapshot(2, "web"))
		store.Publish(snapshot(3, "web"))
		synctest.Wait()
		if v := loaded(t, c); v != 1 {
			t.Errorf("version %d within the interval", v)
		}
		time.Sleep(DefaultInterval)
		synctest.Wait()
		if v := loaded(t, c); v != 3 {
			t.Errorf("version %d after the interval", v)
		}
		store.Publish(snapshot(4, "web"))
		synctest.Wait()
		cancel()
		<-done
		if v := loaded(t, c); v != 4 {
			t.Errorf("version %d after the end", v)
		}
		if strings.Contains(log.String(), "level=ERROR") {
			t.Error(log)
		}
	})
}

func TestRunReportsErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, log := cache(filepath.Join(t.TempDir(), "gone"))
		store := discovery.NewStore(snapshot(0))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx, store); close(done) }()
		store.Publish(snapshot(1, "web"))
		synctest.Wait()
		cancel()
		<-done
		if !strings.Contains(log.String(), "snapshot is not saved") {
			t.Errorf("log %s", log)
		}
	})
}

func TestAssignments(t *testing.T) {
	c, _ := cache(t.TempDir())
	a := c.Assignments()
	if list, err := a.Load(); list != nil || err != nil {
		t.Errorf("new node: %v %v", list, err)
	}
	want := []discovery.Assignment{
		{Service: mesh.ParseName("web"), Address: netip.MustParseAddr("240.240.0.1")},
		{Service: mesh.ParseName("ns/db"), Address: netip.MustParseAddr("2001:2::1"), Released: time.Unix(1700000000, 0).UTC()},
	}
	if err := a.Save(want); err != nil {
		t.Fatal(err)
	}
	got, err := a.Load()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if err := os.WriteFile(c.assignments.path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Load(); !errors.Is(err, errKind) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzUnwrap(f *testing.F) {
	f.Add([]byte("meshproxy-snapshot 1 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 0\n"))
	f.Add([]byte("meshproxy-snapshot 1 x 99999999999999999999\n{}"))
	c := New(Options{Dir: "/nonexistent"})
	f.Fuzz(func(t *testing.T, b []byte) {
		if content, err := c.snapshot.unwrap(b); err == nil && len(content) > len(b) {
			t.Error("more than there is")
		}
	})
}

// TestRunKeepsWhatIsOnDisk: before any source is heard from, the snapshot is
// the one from disk, and writing it again would make it look newer.
func TestRunKeepsWhatIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := cache(t.TempDir())
		if err := c.Save(snapshot(5, "web")); err != nil {
			t.Fatal(err)
		}
		in := snapshot(6, "web").Input()
		in.Sources = []mesh.SourceState{{Name: "consul", Ready: true, Stale: true, FromDisk: true}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.Run(ctx, discovery.NewStore(mesh.Build(in))); close(done) }()
		synctest.Wait()
		cancel()
		<-done
		if v := loaded(t, c); v != 5 {
			t.Errorf("version %d", v)
		}
	})
}
