// SPDX-License-Identifier: Apache-2.0

package leafcache

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Root works in directories that belong to the node's user: names are looked up
// within a directory (os.Root), and files are made anew, so that no link leads to
// a file of root's.

const (
	temporary = ".tmp"
	// maxSize bounds what is read: a thousand leaves take 2 MiB.
	maxSize = 64 << 20
)

var errSize = fmt.Errorf("more than %d bytes", maxSize)

func readFile(dir *os.Root, name string) ([]byte, error) {
	// A pipe in its place must not hang the start.
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", f.Name())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = fmt.Errorf("%s: %w", f.Name(), errSize)
	}
	if err != nil {
		clear(text)
		return nil, err
	}
	return text, nil
}

// writeFile replaces a file by one that only the directory's owner can read, and
// that lasts over a power failure.
func writeFile(dir *os.Root, name string, text []byte) (err error) {
	tmp := name + temporary
	if err := dir.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Remove(tmp))
		}
	}()
	err = give(dir, f)
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := dir.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

// give makes a file that of its directory's owner, where that is somebody else.
func give(dir *os.Root, f *os.File) error {
	var of, own unix.Stat_t
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := errors.Join(unix.Fstat(int(d.Fd()), &of), unix.Fstat(int(f.Fd()), &own)); err != nil {
		return err
	}
	if of.Uid == own.Uid {
		return nil
	}
	return f.Chown(int(of.Uid), int(of.Gid))
}

func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
