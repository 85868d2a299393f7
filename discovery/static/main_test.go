// SPDX-License-Identifier: Apache-2.0

package static

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/meshproxy/meshproxy/discovery"
	"github.com/meshproxy/meshproxy/discovery/mesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testOptions are those of node a, with files of the contents given.
func testOptions(t *testing.T, contents ...string) Options {
	t.Helper()
	opts := Options{
		Node: mesh.Node{
			Name: "a", Address: netip.MustParseAddr("10.0.0.1"),
			Addresses:   []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
			Locality:    mesh.Locality{Region: "eu", Zone: "1"},
			TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"),
		},
		LookupUser: func(name string) (string, error) {
			if name == "www-data" {
				return "33", nil
			}
			return "", errors.New("no such user")
		},
	}
	dir := t.TempDir()
	for i, c := range contents {
		path := filepath.Join(dir, string('a'+rune(i))+".yaml")
		if err := os.WriteFile(path, []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
		opts.Files = append(opts.Files, File{Path: path})
	}
	return opts
}

func mustLoad(t *testing.T, contents ...string) discovery.Update {
	t.Helper()
	u, err := Load(testOptions(t, contents...))
	if err != nil {
		t.Fatal(err)
	}
	return u
}
