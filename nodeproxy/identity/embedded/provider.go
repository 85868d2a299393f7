// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/nodeproxy/identity/internal/watch"
)

const providerName = "embedded"

const (
	// minRenewal keeps a root in its last seconds from being asked all the
	// time.
	minRenewal = 100 * time.Millisecond
	// rootWarning is how long before its end a root without a successor is
	// worth a warning.
	rootWarning = 30 * 24 * time.Hour
)

// Options are for a provider; zero fields are the defaults.
type Options struct {
	Dir string
	// LeafTTL is the lifetime of leaves: at most what the CA was made with, and
	// that, or DefaultLeafTTL if it is less, by default. Leaves are renewed at
	// half of it.
	LeafTTL time.Duration
	// Backdate sets NotBefore into the past, for peers whose clocks are
	// late; 1 minute by default, none if negative.
	Backdate time.Duration
	// Poll is how often the directory is read even if no event says so, 30 s
	// by default.
	Poll   time.Duration
	Clock  identity.Clock
	Logger *slog.Logger
}

// Provider issues leaves for any identity of its trust domain.
type Provider struct {
	opts   Options
	log    *slog.Logger
	leaves *identity.Leaves

	identity.Notifier
	state  atomic.Pointer[state]
	bundle atomic.Pointer[identity.Bundle]
	issued chan struct{} // a leaf is due before Run's wake

	mu      sync.Mutex
	renewal map[spiffeid.ID]time.Time
	wake    time.Time // when Run looks at renewal next
	problem string    // of the directory; last logged
}

// state is a CA directory as read.
type state struct {
	*authority
	text []byte // of the manifest
}

var _ identity.Provider = (*Provider)(nil)

// Open reads the CA. Leaves are issued from then on; Run renews them.
func Open(opts Options) (*Provider, error) {
	opts.Clock = clockOr(opts.Clock)
	opts.Backdate = max(0, durationOr(opts.Backdate, time.Minute))
	opts.Poll = durationOr(opts.Poll, 30*time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Provider{
		opts:    opts,
		log:     opts.Logger,
		issued:  make(chan struct{}, 1),
		renewal: make(map[spiffeid.ID]time.Time),
	}
	p.leaves = identity.NewLeaves(p.issue, opts.Clock)
	s, err := p.read()
	if err != nil {
		return nil, err
	}
	p.opts.LeafTTL = durationOr(opts.LeafTTL, min(DefaultLeafTTL, s.maxLeafTTL))
	if p.opts.LeafTTL > s.maxLeafTTL {
		return nil, fmt.Errorf("leaf lifetime is %v, the CA in %s allows at most %v", opts.LeafTTL, opts.Dir, s.maxLeafTTL)
	}
	p.state.Store(s)
	p.bundle.Store(s.authority.bundle(opts.Clock.Now()))
	p.warnOfEnd(s)
	return p, nil
}

func (p *Provider) warnOfEnd(s *state) {
	last := s.roots[len(s.roots)-1]
	if p.opts.Clock.Now().Add(rootWarning).After(last.cert.NotAfter) {
		p.log.Warn("the CA's root ends soon, rotate it", "dir", p.opts.Dir, "root", last.name(), "notAfter", last.cert.NotAfter)
	}
}

// TrustDomain returns the trust domain of the CA.
func (p *Provider) TrustDomain() spiffeid.TrustDomain { return p.state.Load().trustDomain }

// Leaf returns the leaf of an identity, which is issued at its first use.
func (p *Provider) Leaf(ctx context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	return p.leaves.Get(ctx, id)
}

// Bundle returns the roots that are trusted now.
func (p *Provider) Bundle() *identity.Bundle { return p.bundle.Load() }

// Summary describes the roots and leaves.
func (p *Provider) Summary() identity.Summary {
	s := identity.Summary{
		Provider: providerName,
		Roots:    p.state.Load().summaries(p.opts.Clock.Now()),
	}
	p.leaves.All(func(id spiffeid.ID, leaf *tls.Certificate) {
		s.Leaves = append(s.Leaves, identity.SummarizeLeaf(id, leaf))
	})
	identity.SortLeaves(s.Leaves)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.problem != "" {
		s.Problems = []string{p.problem}
	}
	return s
}

// issue is the fetch of p.leaves.
func (p *Provider) issue(_ context.Context, id spiffeid.ID) (*tls.Certificate, error) {
	s, now := p.state.Load(), p.opts.Clock.Now()
	if id.TrustDomain() != s.trustDomain || id.Path() == "" {
		return nil, fmt.Errorf("CA of trust domain %q cannot issue for %q", s.trustDomain, id)
	}
	leaf, err := s.signer(now).issue(id, now, p.opts.LeafTTL, p.opts.Backdate)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := renewalTime(now, leaf.Leaf.NotAfter)
	p.renewal[id] = at
	if at.Before(p.wake) {
		select {
		case p.issued <- struct{}{}:
		default:
		}
	}
	return leaf, nil
}

// renewalTime lies a little before half of the lifetime, not at the same
// moment for leaves that were issued together.
func renewalTime(now, notAfter time.Time) time.Time {
	half := notAfter.Sub(now) / 2
	early := time.Duration(rand.Float64() * 0.2 * float64(half))
	return now.Add(max(half-early, minRenewal))
}

// read reads the directory.
func (p *Provider) read() (*state, error) {
	dir, err := openStore(p.opts.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	if err := dir.hold(unix.LOCK_SH); err != nil {
		return nil, err
	}
	text, err := dir.manifestText()
	if err != nil {
		return nil, err
	}
	old := p.state.Load()
	if old != nil && bytes.Equal(old.text, text) && !old.prunable(p.opts.Clock.Now()) {
		return old, nil
	}
	a, err := dir.load(text)
	if err != nil {
		return nil, err
	}
	if old != nil && a.trustDomain != old.trustDomain {
		return nil, fmt.Errorf("CA in %s is now of trust domain %q, was of %q", p.opts.Dir, a.trustDomain, old.trustDomain)
	}
	return &state{authority: a, text: text}, nil
}

// Run follows the directory and renews leaves until ctx ends.
func (p *Provider) Run(ctx context.Context) error {
	w := watch.New(p.log)
	defer w.Close()
	w.Set([]string{p.opts.Dir})
	for {
		// The order matters: what happens after the turn is in a channel.
		p.turn(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events():
		case err := <-w.Errors():
			p.log.Debug("events of the CA directory lost", "dir", p.opts.Dir, "err", err)
		case <-p.issued:
		case <-p.opts.Clock.After(p.untilNext()):
		}
	}
}

// turn does all that is due. It must leave nothing due behind, or Run spins.
func (p *Provider) turn(ctx context.Context) {
	p.reload()
	now := p.opts.Clock.Now()
	s := p.state.Load()
	changed := false
	if b := s.authority.bundle(now); !b.Equal(p.bundle.Load()) {
		p.bundle.Store(b)
		changed = true
		p.log.Info("trust bundle changed", "roots", len(b.Roots(s.trustDomain)), "signing", s.signer(now).name())
	}
	if p.renewLeaves(ctx, s, now) || changed {
		p.Notify()
	}
	if s.prunable(now) {
		if err := Prune(p.opts.Dir, p.opts.Clock); err != nil {
			// Read-only to this node: another one, or the command, does it.
			p.log.Debug("CA directory not pruned", "dir", p.opts.Dir, "err", err)
		}
	}
}

// reload takes over what is in the directory, or keeps what it has.
func (p *Provider) reload() {
	s, err := p.read()
	problem := ""
	if err != nil {
		problem = err.Error()
	} else if s != p.state.Load() {
		p.state.Store(s)
		p.warnOfEnd(s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if problem != p.problem && problem != "" {
		p.log.Error("CA directory is unusable, the last good state stays", "dir", p.opts.Dir, "err", err)
	}
	p.problem = problem
}

// renewLeaves renews what is due, or of a root that signs no more, and drops
// what nobody has used for half its lifetime.
func (p *Provider) renewLeaves(ctx context.Context, s *state, now time.Time) (renewed bool) {
	signer := s.signer(now)
	for _, id := range p.due(signer, now) {
		if !p.leaves.Used(id) {
			p.leaves.Forget(id)
			p.setRenewal(id, time.Time{})
			continue
		}
		err := p.leaves.Renew(ctx, id)
		switch {
		case err == nil:
			renewed = true
		case errors.Is(err, context.Canceled):
			return renewed
		default:
			p.log.Error("leaf not renewed", "identity", id.String(), "err", err)
			p.setRenewal(id, now.Add(min(max(time.Second, p.opts.LeafTTL/20), p.opts.Poll)))
		}
	}
	return renewed
}

// due returns whose leaves are to be renewed, and forgets about leaves that are
// gone.
func (p *Provider) due(signer *root, now time.Time) []spiffeid.ID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var ids []spiffeid.ID
	for id, at := range p.renewal {
		leaf := p.leaves.Peek(id)
		if leaf == nil {
			if !now.Before(at) {
				delete(p.renewal, id)
			}
			continue
		}
		succeeded := signer.canSign && !bytes.Equal(leaf.Leaf.AuthorityKeyId, signer.cert.SubjectKeyId)
		if succeeded || !now.Before(at) {
			ids = append(ids, id)
		}
	}
	return ids
}

// setRenewal changes when the leaf is due; never, if zero.
func (p *Provider) setRenewal(id spiffeid.ID, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if at.IsZero() {
		delete(p.renewal, id)
		return
	}
	p.renewal[id] = at
}

// untilNext is how long Run may sleep.
func (p *Provider) untilNext() time.Duration {
	now := p.opts.Clock.Now()
	next := now.Add(p.opts.Poll)
	if change := p.state.Load().nextChange(now); !change.IsZero() && change.Before(next) {
		next = change
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.renewal {
		if at.Before(next) {
			next = at
		}
	}
	p.wake = next
	return max(0, next.Sub(now))
}
