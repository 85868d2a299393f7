// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// File is a file of a machine.
type File struct {
	// Path is absolute.
	Path string
	// Content is what it contains, or From names a file of this machine.
	Content string
	From    string
	// Link makes it a symbolic link to this target.
	Link string
	// Mode is 0644 by default.
	Mode fs.FileMode
}

// writePayload writes the archive that a machine unpacks at its first boot. It
// has no directories: those that are there keep their modes, and symbolic links
// such as /lib stay what they are.
func writePayload(path string, files []File) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write files: %w", err)
	}
	defer out.Close()
	archive := tar.NewWriter(out)
	for _, f := range files {
		if err := addFile(archive, f); err != nil {
			return fmt.Errorf("write file %s: %w", f.Path, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write files: %w", err)
	}
	return out.Close()
}

func addFile(archive *tar.Writer, f File) error {
	mode := f.Mode
	if mode == 0 {
		mode = 0o644
	}
	header := &tar.Header{
		Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(mode.Perm()), Typeflag: tar.TypeReg,
		ModTime: time.Now(), Format: tar.FormatGNU, Size: int64(len(f.Content)),
	}
	if f.Link != "" {
		header.Typeflag, header.Linkname, header.Size = tar.TypeSymlink, f.Link, 0
		return archive.WriteHeader(header)
	}
	var content io.Reader = strings.NewReader(f.Content)
	if f.From != "" {
		file, err := os.Open(f.From)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		header.Size = info.Size()
		content = file
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(archive, content)
	return err
}
