// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/discovery/static"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/sockmap/cgroup"
	"github.com/meshproxy/meshproxy/sockmap/netns/helper"
)

func (c *commands) netnsHelper() *cobra.Command {
	var (
		account string
		listen  string
		idle    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "netns-helper",
		Short: "Open sockets in workloads' network namespaces for a node that may not",
		Long: `Open sockets in workloads' network namespaces, for a node that runs without
CAP_SYS_ADMIN and CAP_SYS_PTRACE. It is started by systemd when the node needs
it (meshproxy-netns.socket), serves root and the node's user, and opens the
namespaces of those processes only whose cgroup the configuration enrols as a
workload.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			uid, err := userID(account)
			if err != nil {
				return err
			}
			fd, err := helperListener(listen)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			handler, err := telemetry.NewLogHandler(c.Stderr, "text", slog.LevelInfo)
			if err != nil {
				return err
			}
			enrolled := &enrolment{load: c.origins(nil), now: c.now}
			return c.HelpNetNS(cmd.Context(), helper.Options{
				User: uid, Allow: enrolled.allow, Idle: idle, Logger: slog.New(handler),
			}, fd)
		},
	}
	cmd.Flags().StringVar(&account, "user", "meshproxy", "the node's user, by name or number")
	cmd.Flags().StringVar(&listen, "listen", "", "socket to listen on, where systemd does not pass one")
	cmd.Flags().DurationVar(&idle, "idle", 10*time.Minute, "end when nobody has asked for so long; 0s: never")
	return cmd
}

func userID(account string) (uint32, error) {
	if n, err := strconv.ParseUint(account, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(account)
	if err != nil {
		return 0, usagef("--user %q: want a user of this machine: %w", account, err)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read id of user %s: %w", account, err)
	}
	return uint32(n), nil
}

// helperListener takes the socket that systemd has passed (sd_listen_fds(3)), or
// makes one that only root may open.
func helperListener(path string) (int, error) {
	if path == "" {
		passed := activation.Files(true)
		if len(passed) != 1 {
			return -1, usagef("systemd has passed %d sockets, want 1; without systemd, name one with --listen", len(passed))
		}
		// The file closes its descriptor when it is collected.
		defer passed[0].Close()
		fd, err := unix.FcntlInt(passed[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("take over socket: %w", err)
		}
		return fd, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, fmt.Errorf("replace socket: %w", err)
	}
	// Everybody may connect; the helper looks at who it is.
	return helper.Listen(path, 0o666)
}

// enrolment is which cgroups the configuration makes workloads of. It is read
// again when it is asked for and what is known is older than a second.
type enrolment struct {
	load config.Origins
	now  func() time.Time

	mu        sync.Mutex
	read      time.Time
	workloads []*mesh.Workload
}

func (e *enrolment) allow(path string, uid uint32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.now(); now.Sub(e.read) > time.Second {
		e.read = now
		workloads, err := enrolledBy(e.load)
		if err != nil && e.workloads == nil {
			return fmt.Errorf("read who is enrolled: %w", err)
		}
		if err == nil { // otherwise what was valid stays in force, as in the node
			e.workloads = workloads
		}
	}
	for _, w := range e.workloads {
		if cgroup.Match(w.Selectors, path) || matchesUser(w, uid) {
			return nil
		}
	}
	return fmt.Errorf("the configuration enrols neither cgroup %s nor user %d", path, uid)
}

// matchesUser: who is a workload by its user may be in any cgroup.
func matchesUser(w *mesh.Workload, uid uint32) bool {
	return slices.Contains(w.Selectors, mesh.Selector{Kind: mesh.SelectUser, Value: strconv.FormatUint(uint64(uid), 10)})
}

// enrolledBy is who is a workload by configuration alone, whichever the source.
// What a source tells the node proves nothing to the helper. It needs not: a
// service of Consul's that the configuration says nothing of is whoever listens
// on its port in the node's own network namespace.
func enrolledBy(o config.Origins) ([]*mesh.Workload, error) {
	conf, err := o.Load()
	if err != nil {
		return nil, err
	}
	workloads := []*mesh.Workload{}
	if len(conf.MeshFiles()) > 0 {
		update, err := static.Load(conf.Static())
		if err != nil {
			return nil, err
		}
		workloads = update.Workloads
	}
	if !conf.Sources.Consul.Enabled {
		return workloads, nil
	}
	for i := range conf.Sources.Consul.Services {
		s := &conf.Sources.Consul.Services[i]
		if s.LeftOut {
			continue
		}
		workloads = append(workloads, &mesh.Workload{Name: s.Name, Selectors: s.Match})
	}
	return workloads, nil
}
