// SPDX-License-Identifier: Apache-2.0

// Command manpages writes the manual pages: one for each command, from what the
// commands say of themselves, and meshproxy.yaml(5), from the table that the
// configuration is read by. `make install` calls it.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra/doc"

	"github.com/meshproxy/meshproxy/nodeproxy/cli"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: manpages VERSION DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}

func write(version, dir string) error {
	root := cli.Command(cli.Surroundings{Stdout: io.Discard, Stderr: io.Discard})
	root.DisableAutoGenTag = true // the same sources give the same pages
	for _, section := range []string{"man5", "man8"} {
		if err := os.MkdirAll(filepath.Join(dir, section), 0o755); err != nil {
			return err
		}
	}
	// The date is SOURCE_DATE_EPOCH's.
	header := &doc.GenManHeader{Section: "8", Source: "meshproxy " + version, Manual: "meshproxy"}
	if err := doc.GenManTree(root, header, filepath.Join(dir, "man8")); err != nil {
		return fmt.Errorf("write pages of commands: %w", err)
	}
	page, err := configPage(version)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "man5", "meshproxy.yaml.5"), page, 0o644)
}

const configIntroduction = `%% "MESHPROXY.YAML" "5" "" "meshproxy %s" "meshproxy"
# NAME

meshproxy.yaml - configuration of a meshproxy node

# SYNOPSIS

/etc/meshproxy/meshproxy.yaml

# DESCRIPTION

The configuration of **meshproxy run**: one YAML mapping. A key that is not in
this list, one that is there twice, or a value that is not accepted is an error
that names file, line and key; a reload of such a file changes nothing. Each key
may be given as a flag of **meshproxy run**, too, or by a variable; flags win
over variables, and these over the file.

Besides these keys the file may have the sections of the mesh: *nodes*,
*services*, *policies*, *authorization* and *workloads*. See
/usr/share/doc/meshproxy/full.yaml, which explains them, too.

# KEYS

`

// configPage writes meshproxy.yaml(5).
func configPage(version string) ([]byte, error) {
	keys, err := config.Reference()
	if err != nil {
		return nil, fmt.Errorf("read reference of keys: %w", err)
	}
	var md bytes.Buffer
	fmt.Fprintf(&md, configIntroduction, version)
	for _, k := range keys {
		fmt.Fprintf(&md, "**%s**\n: %s\n", k.Key, escape(k.Doc))
		for _, line := range details(k) {
			fmt.Fprintf(&md, "  %s\n", escape(line))
		}
		md.WriteString("\n")
	}
	md.WriteString("# SEE ALSO\n\n**meshproxy(8)**, **meshproxy-run(8)**, **meshproxy-config(8)**\n")
	return md2man.Render(md.Bytes()), nil
}

func details(k config.KeyDoc) (lines []string) {
	lines = append(lines, "Accepts "+k.Accepts+".")
	if text := fmt.Sprint(k.Default); text != "" && text != "[]" {
		lines = append(lines, "Default: "+text+".")
	}
	if k.Variable != "" {
		lines = append(lines, "Variable: "+k.Variable+".")
	}
	if k.Restart {
		lines = append(lines, "A change takes effect after a restart.")
	}
	return lines
}

// escape keeps markdown from reading what is meant as it stands.
func escape(s string) string {
	return strings.NewReplacer("_", `\_`, "*", `\*`, "<", `\<`, "[", `\[`).Replace(s)
}
