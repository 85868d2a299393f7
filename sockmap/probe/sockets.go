// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netcookie"
	"github.com/meshproxy/meshproxy/sockmap/netns"
	"github.com/meshproxy/meshproxy/sockmap/sockdiag"
)

// helperName returns what C programs call a helper: FnSkStorageGet is
// bpf_sk_storage_get.
func helperName(h asm.BuiltinFunc) string {
	var b strings.Builder
	b.WriteString("bpf")
	for _, c := range strings.TrimPrefix(h.String(), "Fn") {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

func socketChecks() []check {
	return []check{
		{
			name: "netns cookie", required: true, minKernel: "5.7", consequence: noCapture,
			look: func() (string, error) {
				cookie, err := netcookie.Of(netns.Own)
				if err != nil {
					return "", err
				}
				return strconv.FormatUint(cookie, 10), nil
			},
		},
		{
			name: "inet_diag cgroup id", minKernel: "5.7",
			consequence: "Services that listen already when meshproxy starts are outside the mesh until they are restarted.",
			look:        diagCgroup,
		},
		{
			name: "inet_diag destroy", minKernel: "4.5",
			consequence: "Open connections can't be closed when a policy comes to forbid them, unless the proxy carries them. New ones are refused all the same.",
			look:        diagDestroy,
		},
	}
}

// diagCgroup makes a listener and looks whether the kernel says where it
// belongs.
func diagCgroup() (string, error) {
	l, err := netns.Listen(context.Background(), netns.Own, "tcp4", "127.0.0.1:0", nil)
	if err != nil {
		return "", err
	}
	defer l.Close()
	s, err := sockdiag.Open(netns.Own)
	if err != nil {
		return "", err
	}
	defer s.Close()
	found, err := s.LocalBind(uint16(l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		return "", err
	}
	for _, l := range found {
		if l.CgroupID != 0 {
			return "", nil
		}
	}
	return "", absent("the kernel does not tell the cgroup of a socket")
}

func diagDestroy() (string, error) {
	s, err := sockdiag.Open(netns.Own)
	if err != nil {
		return "", err
	}
	defer s.Close()
	err = s.ProbeDestroy()
	if errors.Is(err, sockdiag.ErrNoDestroy) {
		err = absence{err}
	}
	return "", err
}

func portChecks(o Options) []check {
	var checks []check
	for _, p := range o.Ports {
		checks = append(checks, check{
			name:        fmt.Sprintf("port %d/%s", p.Port, p.Network),
			required:    !o.Running,
			consequence: fmt.Sprintf("The listener for %s can't be opened, and meshproxy does not start. Choose another port, or stop who has it.", p.For),
			look: func() (string, error) {
				detail, err := lookAtPort(p)
				if o.Running {
					return detail, nil
				}
				return detail, err
			},
		})
	}
	return checks
}

func lookAtPort(p Port) (string, error) {
	if p.Network == "udp" {
		return bindUDP(p.Port)
	}
	s, err := sockdiag.Open(netns.Own)
	if err != nil {
		return "", err
	}
	defer s.Close()
	found, err := s.LocalBind(p.Port)
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "free", nil
	}
	var who []string
	for _, l := range found {
		owner := "uid " + strconv.FormatUint(uint64(l.UID), 10)
		if path, err := cgroup.Path(l.CgroupID); err == nil {
			owner += ", cgroup " + path
		}
		who = append(who, l.Address.String()+" by "+owner)
	}
	detail := "in use: " + strings.Join(who, "; ")
	return detail, absent("port is in use")
}

// bindUDP tries, since inet_diag may be built without UDP.
func bindUDP(port uint16) (string, error) {
	c, err := net.ListenPacket("udp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	switch {
	case err == nil:
		_ = c.Close()
		return "free", nil
	case errors.Is(err, unix.EADDRINUSE):
		return "in use", absence{err}
	case errors.Is(err, unix.EPERM):
		// The capture's own guard at bind(2), while the proxy is away.
		return "kept for meshproxy by its pinned programs", nil
	default:
		return "", err
	}
}
