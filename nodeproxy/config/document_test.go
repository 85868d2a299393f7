// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestConsulDocument: the configuration in docs/consul.md is one, with each of
// the parts that it suggests.
func TestConsulDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/consul.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)\n( *)```yaml\n(.*?)\n *```").FindAllSubmatch(text, -1) {
		blocks = append(blocks, strings.ReplaceAll("\n"+string(m[2]), "\n"+string(m[1]), "\n"))
	}
	if len(blocks) < 4 {
		t.Fatalf("docs/consul.md has %d blocks", len(blocks))
	}
	for _, block := range blocks[1:] {
		if !strings.Contains(block, "services:") { // a document of its own
			if _, err := Parse("consul.md", []byte(block+"\n")); err != nil {
				t.Errorf("%s: %v", block, err)
			}
			continue
		}
		// A part is below "consul", wherever the document has it.
		indent := block[1:strings.Index(block, "services:")]
		part := strings.ReplaceAll(block, "\n"+indent, "\n    ")
		c, err := Parse("consul.md", []byte(blocks[0]+part+"\n"))
		if err != nil {
			t.Errorf("%s%s: %v", blocks[0], part, err)
			continue
		}
		if n := len(c.Sources.Consul.Services); n != 1 {
			t.Errorf("%d services in %s", n, part)
		}
	}
}
