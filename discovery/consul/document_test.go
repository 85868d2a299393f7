// SPDX-License-Identifier: Apache-2.0

package consul_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	peer "github.com/meshproxy/meshproxy/tests/peers/consul"
)

// document returns the block of docs/consul.md in a language that has a text in
// it.
func document(t *testing.T, language, with string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "consul.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)\n *```"+language+"\n(.*?)\n *```").FindAllSubmatch(text, -1) {
		if strings.Contains(string(m[1]), with) {
			return string(m[1])
		}
	}
	t.Fatalf("docs/consul.md has no block in %s with %q", language, with)
	return ""
}

// documentedToken makes the token as the document says, by its commands. There is
// no sudo where there is no other user.
func documentedToken(t *testing.T, s *peer.Server) string {
	t.Helper()
	dir := t.TempDir()
	consul, err := peer.Binary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "meshproxy-vm1.hcl"), []byte(document(t, "hcl", "meshproxy-vm1.hcl")), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "consul.token")
	commands := strings.NewReplacer("sudo ", "", "/etc/meshproxy/consul.token", path).Replace(document(t, "sh", "consul acl policy create"))
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(consul)+":"+os.Getenv("PATH"),
		"CONSUL_HTTP_ADDR="+s.HTTPAddr.String(), "CONSUL_HTTP_TOKEN="+s.ManagementToken)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", commands, err, out)
	}
	token, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(token))
}
