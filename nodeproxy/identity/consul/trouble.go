// SPDX-License-Identifier: Apache-2.0

package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/consulagent"
)

// trouble is what goes wrong again and again, since when.
type trouble struct {
	since time.Time // zero: nothing does
	err   error
}

// is notes an error and says whether it is news.
func (t *trouble) is(err error, now time.Time) bool {
	news := t.err == nil || t.err.Error() != err.Error()
	if t.since.IsZero() {
		t.since = now
	}
	t.err = err
	return news
}

func (t *trouble) String() string {
	text := fmt.Sprintf("since %s: %v", t.since.UTC().Format(time.RFC3339), t.err)
	if rule := consulagent.Rule(t.err); rule != "" {
		text += "; the token needs the rule: " + rule
	}
	return text
}

// agentIs notes whether the agent answers about roots. When it does again, the
// leaves that it could not give are asked for soon.
func (p *Provider) agentIs(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.opts.Clock.Now()
	if err != nil {
		if p.away.is(err, now) {
			p.log.Warn("Consul gives no roots; the last ones stay in force", "agent", p.opts.Agent.Address(),
				"since", p.away.since.UTC().Format(time.RFC3339), "error", err)
		}
		return
	}
	if p.away.since.IsZero() {
		return
	}
	p.log.Info("Consul gives roots again", "agent", p.opts.Agent.Address(), "after", now.Sub(p.away.since).Round(time.Second))
	p.away = trouble{}
	soon := now.Add(rand.N(firstWindow))
	for _, e := range p.entries {
		if !e.fault.since.IsZero() && e.due.After(soon) && !consulagent.Refused(e.fault.err) {
			e.due = soon
		}
	}
	p.wakeUp()
}

// report notes that there is no new leaf, and logs it when it is news.
func (p *Provider) report(id spiffeid.ID, e *entry, err error) {
	if !e.fault.is(err, p.opts.Clock.Now()) {
		return
	}
	what, level := "Consul gives no leaf", slog.LevelWarn
	if e.leaf != nil {
		what = "Consul doesn't renew a leaf; the last one stays in use"
	}
	if errors.As(err, new(net.Error)) {
		level = slog.LevelDebug // who watches the roots says so for all leaves
	}
	args := []any{"identity", id.String(), "error", err}
	if rule := consulagent.Rule(err); rule != "" {
		args = append(args, "rule", rule)
	}
	p.log.Log(context.Background(), level, what, args...)
}

func (p *Provider) recovered(id spiffeid.ID, e *entry) {
	if !e.fault.since.IsZero() {
		p.log.Info("Consul gives the leaf again", "identity", id.String(),
			"after", p.opts.Clock.Now().Sub(e.fault.since).Round(time.Second))
	}
	e.fault = trouble{}
}

// mostProblems of leaves are told apart; an agent that is away has them all.
const mostProblems = 5

// problems are those of now, for people.
func (p *Provider) problems() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []string
	for id, e := range p.entries {
		switch {
		case e.fault.since.IsZero():
		case e.leaf == nil:
			list = append(list, fmt.Sprintf("no leaf of %s %v", id, &e.fault))
		default:
			list = append(list, fmt.Sprintf("leaf of %s not renewed %v", id, &e.fault))
		}
	}
	slices.Sort(list)
	if more := len(list) - mostProblems; more > 0 {
		list = append(list[:mostProblems], fmt.Sprintf("and %d leaves more", more))
	}
	if !p.away.since.IsZero() {
		list = append([]string{fmt.Sprintf("no roots from Consul's agent at %s %v", p.opts.Agent.Address(), &p.away)}, list...)
	}
	return list
}
