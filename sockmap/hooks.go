// SPDX-License-Identifier: Apache-2.0

package sockmap

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is a program that runs once per node and where it is attached: to the
// cgroup root or, with a tracepoint, to the kernel.
type hook struct {
	name       string // of the pin
	program    string
	attach     ebpf.AttachType
	tracepoint string
	// decides: only one program at a time may decide about a connection or a
	// port. The others keep records, and two of them keep them side by side.
	decides bool
}

// hooks are attached in this order and detached in the opposite one: what
// keeps records comes before what relies on them, and the connections are
// redirected last.
var hooks = []hook{
	{name: "cgroup_mkdir", program: "enroll", tracepoint: "cgroup_mkdir"},
	{name: "cgroup_rmdir", program: "dismiss", tracepoint: "cgroup_rmdir"},
	{name: "sock_ops", program: "flow", attach: ebpf.AttachCGroupSockOps},
	{name: "getpeername4", program: "name4", attach: ebpf.AttachCgroupInet4GetPeername},
	{name: "getpeername6", program: "name6", attach: ebpf.AttachCgroupInet6GetPeername},
	{name: "recvmsg4", program: "answer4", attach: ebpf.AttachCGroupUDP4Recvmsg},
	{name: "recvmsg6", program: "answer6", attach: ebpf.AttachCGroupUDP6Recvmsg},
	{name: "bind4", program: "guard4", attach: ebpf.AttachCGroupInet4Bind, decides: true},
	{name: "bind6", program: "guard6", attach: ebpf.AttachCGroupInet6Bind, decides: true},
	{name: "sendmsg4", program: "query4", attach: ebpf.AttachCGroupUDP4Sendmsg, decides: true},
	{name: "sendmsg6", program: "query6", attach: ebpf.AttachCGroupUDP6Sendmsg, decides: true},
	{name: "connect4", program: "outbound4", attach: ebpf.AttachCGroupInet4Connect, decides: true},
	{name: "connect6", program: "outbound6", attach: ebpf.AttachCGroupInet6Connect, decides: true},
}

// install makes h run p, pinned in the directory links. What is pinned there
// already keeps running without a gap: it stays when it runs the same program on
// the same maps, and gets the new program otherwise. So does a link that decides
// in one of the directories earlier (of other layouts), from one connection to
// the next; other hooks are attached beside those.
func (h *hook) install(p *ebpf.Program, root *cgroupRoot, links string, earlier []string, same bool) error {
	path := filepath.Join(links, h.name)
	where := []string{links}
	if h.decides {
		where = append(where, earlier...)
	}
	old, err := h.find(where)
	if err != nil {
		return err
	}
	if old == nil {
		return h.attachAnew(p, root, path)
	}
	defer old.link.Close()
	if h.tracepoint != "" {
		if old.path == path && same && runs(old.link, p) {
			return nil
		}
		// A raw tracepoint's link can't be updated. For a moment both
		// programs run, which does no harm.
		return h.attachAnew(p, root, path)
	}
	if !h.aims(old.link, root) {
		return h.attachAnew(p, root, path)
	}
	if !same || !runs(old.link, p) {
		switch err := old.link.Update(p); {
		case errors.Is(err, unix.ENOLINK): // its cgroup died
			return h.attachAnew(p, root, path)
		case err != nil:
			return fmt.Errorf("update link %s: %w", h.name, err)
		}
	}
	if old.path == path {
		return nil
	}
	return pinAgain(old.link, path)
}

// pinAgain pins a link at a second place; its own Pin would move the first pin,
// which the process before needs should it have to take over again.
func pinAgain(l link.Link, path string) error {
	raw, ok := l.(interface{ FD() int })
	if !ok {
		return fmt.Errorf("pin %s: link of type %T", filepath.Base(path), l)
	}
	fd, err := unix.FcntlInt(uintptr(raw.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	again, err := link.NewFromFD(fd)
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("pin %s: %w", filepath.Base(path), err)
	}
	defer again.Close()
	return replacePin(again, path)
}

// permit makes the links of another layout that guard the proxy's ports run the
// new programs already: the old ones know nothing of the sockets that this
// process marks as its own.
func (k *kernelState) permit() error {
	for i := range hooks {
		h := &hooks[i]
		if h.attach != ebpf.AttachCGroupInet4Bind && h.attach != ebpf.AttachCGroupInet6Bind {
			continue
		}
		old, err := h.find(linksDirs(k.pending.earlier))
		if err != nil {
			return err
		}
		if old == nil {
			continue
		}
		err = old.link.Update(k.pending.coll.Programs[h.program])
		old.link.Close()
		if err != nil && !errors.Is(err, unix.ENOLINK) {
			return fmt.Errorf("update link %s: %w", h.name, err)
		}
	}
	return nil
}

type pinnedLink struct {
	link link.Link
	path string
}

// find returns the first pin of the hook in dirs, nil if there is none.
func (h *hook) find(dirs []string) (*pinnedLink, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, h.name)
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load link %s: %w", h.name, err)
		}
		return &pinnedLink{link: l, path: path}, nil
	}
	return nil, nil
}

// attachAnew attaches with bpf_link or not at all: link.AttachCgroup would fall
// back to a legacy attachment, which nothing can pin, update or find again.
func (h *hook) attachAnew(p *ebpf.Program, root *cgroupRoot, path string) error {
	var (
		l   link.Link
		err error
	)
	if h.tracepoint != "" {
		l, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: h.tracepoint, Program: p})
	} else {
		l, err = link.AttachRawLink(link.RawLinkOptions{Target: int(root.dir.Fd()), Program: p, Attach: h.attach})
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", h.name, err)
	}
	defer l.Close()
	return replacePin(l, path)
}

// aims says whether a link is attached to the root. A link whose cgroup died
// has no cgroup any more, or a former one with another id.
func (h *hook) aims(l link.Link, root *cgroupRoot) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	cg := info.Cgroup()
	return cg != nil && cg.CgroupId == root.id && ebpf.AttachType(cg.AttachType) == h.attach
}

// runs says whether the link's program is p, as far as its instructions go.
func runs(l link.Link, p *ebpf.Program) bool {
	want, err := p.Info()
	if err != nil {
		return false
	}
	tag, err := programTag(l)
	return err == nil && tag == want.Tag
}

func programTag(l link.Link) (string, error) {
	info, err := l.Info()
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return "", fmt.Errorf("open program of link: %w", err)
	}
	defer p.Close()
	pi, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("read program: %w", err)
	}
	return pi.Tag, nil
}

// verify asks the cgroup itself whether the link's program runs there: a link
// that is pinned to a dying cgroup still reports itself healthy.
func (h *hook) verify(root *cgroupRoot, links string) error {
	l, err := link.LoadPinnedLink(filepath.Join(links, h.name), nil)
	if err != nil {
		return fmt.Errorf("load link %s: %w", h.name, err)
	}
	defer l.Close()
	if h.tracepoint != "" {
		return nil
	}
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("read link %s: %w", h.name, err)
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(root.dir.Fd()), Attach: h.attach})
	if err != nil {
		return fmt.Errorf("query cgroup for %s: %w", h.name, err)
	}
	attached := slices.ContainsFunc(q.Programs, func(p link.AttachedProgram) bool { return p.ID == info.Program })
	if !attached || !h.aims(l, root) {
		return fmt.Errorf("%s at %s: %w", h.name, root.dir.Name(), ErrNotAttached)
	}
	return nil
}
