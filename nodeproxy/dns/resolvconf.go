// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	miekg "github.com/miekg/dns"
)

// What resolv.conf(5) says if it says nothing, and how much of it counts.
const (
	defaultTimeout  = 5 * time.Second
	defaultAttempts = 2
	maxTimeout      = 30 * time.Second
	maxAttempts     = 5

	// lookEvery is how often the file is looked at, as long as queries come.
	lookEvery = time.Second
)

// resolvConf is a resolv.conf file, read again when it has changed. Programs
// that write it replace it or write in place; a watch on it would have to
// follow symbolic links into directories that don't exist yet.
type resolvConf struct {
	path string
	now  func() time.Time
	log  *slog.Logger

	mu     sync.Mutex
	looked time.Time
	info   fs.FileInfo
	parsed *upstreams
}

// upstreams returns what the file says. While it can't be read, what it said
// before stays in force.
func (r *resolvConf) upstreams() *upstreams {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if r.parsed != nil && now.Sub(r.looked) < lookEvery {
		return r.parsed
	}
	r.looked = now
	info, err := os.Stat(r.path)
	if err == nil && r.parsed != nil && unchanged(r.info, info) {
		return r.parsed
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(r.path)
	}
	if err != nil {
		if r.parsed == nil || r.info != nil {
			r.log.Warn("read DNS resolvers", "error", err)
		}
		// Whatever appears there next is news.
		r.info = nil
		if r.parsed == nil {
			r.parsed = parseResolvConf(nil)
		}
		return r.parsed
	}
	r.info = info
	r.parsed = parseResolvConf(content)
	r.log.Info("read DNS resolvers", "file", r.path, "resolvers", r.parsed.servers)
	return r.parsed
}

func unchanged(a, b fs.FileInfo) bool {
	return a != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func parseResolvConf(content []byte) *upstreams {
	up := &upstreams{timeout: defaultTimeout, attempts: defaultAttempts}
	// Reading from memory can't fail but for lines beyond all measure.
	if conf, err := miekg.ClientConfigFromReader(bytes.NewReader(content)); err == nil {
		up.timeout = min(time.Duration(min(conf.Timeout, 1000))*time.Second, maxTimeout)
		up.attempts = min(conf.Attempts, maxAttempts)
		for _, server := range conf.Servers {
			if addr, err := netip.ParseAddr(server); err == nil {
				up.servers = append(up.servers, netip.AddrPortFrom(addr.Unmap(), 53))
			}
		}
	}
	// The library doesn't implement this option.
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "options" {
			continue
		}
		for _, option := range fields[1:] {
			up.rotate = up.rotate || option == "rotate"
		}
	}
	if len(up.servers) == 0 {
		up.servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return up
}
