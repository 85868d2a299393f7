// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// otherStructures are changes to what the programs and the proxy share.
var otherStructures = []string{"flow", "socket", "node", "workload", "port"}

// buildOtherLayout builds the product with another layout: the version is
// another one, and structures have a field more at their beginning. The sources
// stay as they are (go help build, -overlay). It needs clang, as "make generate"
// does.
func buildOtherLayout(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	change := func(file string, edit func(string) string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		changed := edit(string(text))
		if changed == string(text) {
			t.Fatalf("nothing to change in %s", file)
		}
		replace[filepath.Join(root, file)] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	change("sockmap/pins.go", func(s string) string {
		return regexp.MustCompile(`(?m)^const layout = \d+$`).ReplaceAllString(s, "const layout = 99")
	})
	copySources(t, filepath.Join(root, "bpf"), dir)
	change("bpf/types.h", func(s string) string {
		for _, name := range otherStructures {
			s = strings.Replace(s, "struct "+name+" {\n", "struct "+name+" {\n\t__u32 changed[2];\n", 1)
		}
		return s
	})
	for _, args := range generators(t, filepath.Join(root, "bpf", "generate.go")) {
		source := args[len(args)-1]
		args = append([]string{"tool", "bpf2go", "-go-package", "bpf", "-output-dir", dir, "-target", "bpfel"}, args[:len(args)-1]...)
		generate := exec.Command("go", append(args, filepath.Join(dir, source))...)
		generate.Dir = root
		if out, err := generate.CombinedOutput(); err != nil {
			t.Fatalf("generate %s: %v\n%s", source, err, out)
		}
	}
	made, err := filepath.Glob(filepath.Join(dir, "*_bpfel.*"))
	if err != nil || len(made) < 4 {
		t.Fatalf("generated %v, %v", made, err)
	}
	for _, file := range made {
		replace[filepath.Join(root, "bpf", filepath.Base(file))] = file
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, text, 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "meshproxy")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", program, ".")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return program
}

func copySources(t *testing.T, from, to string) {
	t.Helper()
	for _, pattern := range []string{"*.c", "*.h"} {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// generators returns the arguments of bpf2go, without the targets.
func generators(t *testing.T, file string) (list [][]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range regexp.MustCompile(`(?m)^//go:generate go tool bpf2go -target \S+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		var args []string
		for _, word := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line[1], -1) {
			args = append(args, strings.Trim(word, `"`))
		}
		list = append(list, args)
	}
	if len(list) == 0 {
		t.Fatalf("no generators in %s", file)
	}
	return list
}
