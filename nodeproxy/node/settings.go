// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
)

// settings are what the data path reads of the configuration.
type settings struct {
	connectTimeout, idleTimeout time.Duration
	forwardedFrom               []netip.Prefix
}

func (n *Node) settings() settings {
	c := n.conf.Load()
	return settings{
		connectTimeout: c.Defaults.ConnectTimeout, idleTimeout: c.Defaults.IdleTimeout,
		forwardedFrom: c.Listeners.ForwardedFrom,
	}
}

// settingsFile is the configuration in force.
func (n *Node) settingsFile() *config.Config { return n.conf.Load() }

// reloads is what became of reading the configuration again.
type reloads struct {
	ask   chan question // by the admin interface
	over  chan struct{} // closed when nobody answers any more
	apply chan struct{} // for follow: put in force again
	// applyNow is apply for one who waits until that is done.
	applyNow chan chan struct{}

	mu       sync.Mutex
	loadedAt time.Time
	lastErr  error
	restart  []string // keys that wait for one
}

// question asks for a reload, or for an upgrade in any case. What somebody else
// asked for is no answer to it: a reload that is under way, as the file has
// changed, may not have read what was written last, and is no upgrade.
type question struct {
	upgrade bool
	answer  chan<- reloaded // has room for one
}

type reloaded struct {
	api.Reload
	err error
}

// applySoon asks follow to put the snapshot in force again.
func (r *reloads) applySoon() {
	select {
	case r.apply <- struct{}{}:
	default:
	}
}

// applied asks follow to put the snapshot in force again, and waits for it.
func (r *reloads) applied(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case r.applyNow <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload reads the configuration again whenever somebody asks, until ctx is
// done or another process serves.
func (n *Node) reload(ctx context.Context) {
	n.reloadAsAsked(ctx)
	close(n.reloads.over)
	if n.relieved() {
		n.stopAdmin() // which waits until the answers are out
	}
}

func (n *Node) reloadAsAsked(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.options.Reload:
			n.reloaded(n.options.Load())
		case <-n.options.Hangup:
			n.renew(ctx, false)
		case <-n.options.Upgrade:
			n.renew(ctx, true)
		case q := <-n.reloads.ask:
			q.answer <- n.renew(ctx, q.upgrade)
		}
		if n.relieved() {
			return
		}
	}
}

// renew gives way to a new executable if there is one, or always. Otherwise it
// reads the configuration again. The new process reads it too, so that a package
// upgrade needs no more than a reload; and one that must not change anything, as
// its configuration is not valid, doesn't.
func (n *Node) renew(ctx context.Context, always bool) reloaded {
	changed, err := n.upgrades.program.Changed()
	if err != nil {
		n.log.Warn("look for a new executable", "error", err)
	}
	if !changed && !always {
		return n.reloaded(n.options.Load())
	}
	if err := n.manager.Reloading(); err != nil {
		n.log.Debug("notify service manager", "error", err)
	}
	u, err := n.upgrade(ctx)
	if err != nil {
		if err := n.manager.Ready(n.summary()); err != nil {
			n.log.Debug("notify service manager", "error", err)
		}
		err = fmt.Errorf("upgrade: %w", err)
	}
	return reloaded{Reload: api.Reload{Upgrade: &u}, err: err}
}

// reloaded puts a configuration in force, or says why it is not.
func (n *Node) reloaded(c *config.Config, err error) reloaded {
	if err := n.manager.Reloading(); err != nil {
		n.log.Debug("notify service manager", "error", err)
	}
	defer func() {
		if err := n.manager.Ready(n.summary()); err != nil {
			n.log.Debug("notify service manager", "error", err)
		}
	}()
	if err != nil {
		n.log.Error("configuration is not valid; nothing was changed", "error", err)
		return n.reloads.done(reloaded{err: err}, nil)
	}
	outcome := reloaded{}
	for _, change := range config.Diff(n.options.Config, c) {
		if change.Restart {
			outcome.RestartNeeded = append(outcome.RestartNeeded, change.Key)
		}
	}
	before := n.conf.Load()
	c = c.InForce(n.options.Config)
	for _, change := range config.Diff(before, c) {
		outcome.Changed = append(outcome.Changed, change.Key)
	}
	n.conf.Store(c)
	if err := n.apply(c); err != nil {
		n.conf.Store(before)
		n.log.Error("apply configuration; nothing was changed", "error", err)
		return n.reloads.done(reloaded{err: err}, nil)
	}
	n.log.Info("configuration reloaded", "changed", outcome.Changed, "restart_needed", outcome.RestartNeeded)
	return n.reloads.done(outcome, outcome.RestartNeeded)
}

// apply brings those parts up to date that keep settings of their own.
func (n *Node) apply(c *config.Config) error {
	if err := n.resolver.Apply(dnsSettings(c)); err != nil {
		return err
	}
	if n.options.Level != nil {
		var level slog.Level
		if err := level.UnmarshalText([]byte(c.Log.Level)); err != nil {
			return fmt.Errorf("log.level: %w", err)
		}
		n.options.Level.Set(level)
	}
	if err := n.applySplicing(c); err != nil {
		return err
	}
	n.static.Reload(n.staticOptions(c))
	if n.consul != nil {
		n.consul.Reload(c.ConsulOptions())
	}
	n.reloads.applySoon()
	return nil
}

// done notes what a reload has come to.
func (r *reloads) done(outcome reloaded, restart []string) reloaded {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lastErr = outcome.err
	if outcome.err == nil {
		r.loadedAt, r.restart = time.Now(), restart
	}
	return outcome
}

// errRelieved answers who asks a process that has given way.
var errRelieved = errors.New("another process serves by now; ask again")

// wait asks for a reload, or for an upgrade in any case, and waits for what
// becomes of it.
func (r *reloads) wait(ctx context.Context, upgrade bool) (api.Reload, error) {
	answer := make(chan reloaded, 1)
	select {
	case r.ask <- question{upgrade: upgrade, answer: answer}:
	case <-r.over:
		return api.Reload{}, errRelieved
	case <-ctx.Done():
		return api.Reload{}, ctx.Err()
	}
	select {
	case o := <-answer:
		return o.Reload, o.err
	case <-ctx.Done():
	}
	// Who gives way answers before it ends what is being asked.
	select {
	case o := <-answer:
		return o.Reload, o.err
	default:
		return api.Reload{}, ctx.Err()
	}
}
