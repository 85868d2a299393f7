// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"

	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/telemetry"
	"github.com/meshproxy/meshproxy/sockmap"
)

// Whether connections of this node are spliced, and what became of them.

func (n *Node) startSplice(context.Context) error {
	if err := n.startLocals(); err != nil {
		return err
	}
	return n.applySplicing(n.conf.Load())
}

// applySplicing puts the configuration's word in force, and the command's. When
// it is to be on for the first time the self-test decides.
func (n *Node) applySplicing(c *config.Config) error {
	if !n.capture.InForce() {
		return nil // once it is
	}
	if err := n.capture.PauseSplicing(n.unspliced(c.Splicing)); err != nil {
		return err
	}
	if err := n.capture.PauseHops(n.unspliced(c.SpliceHops)); err != nil {
		return err
	}
	if c.Splicing == config.SplicingOff && c.SpliceHops == config.SplicingOff {
		return nil
	}
	stats, err := n.capture.Stats()
	if err != nil || stats.Splice.Test.Ran {
		return err
	}
	if err := n.capture.TestSplice(nil); err != nil && !errors.Is(err, sockmap.ErrNoSplice) {
		n.log.Warn("connections of this node are not spliced", "error", err)
		return nil
	}
	if stats, err = n.capture.Stats(); err != nil {
		return err
	}
	if s := &stats.Splice; s.On {
		n.log.Info("connections of this node are spliced", "test", s.Test.Took, "accepted", s.Test.Accepted)
	} else if c.Splicing != config.SplicingOff {
		n.log.Warn("connections of this node are not spliced", "reason", s.Reason)
	}
	if s := &stats.Splice; s.Hops {
		n.log.Info("connections between applications and the proxy are spliced", "test", s.Test.Took)
	} else if c.SpliceHops != config.SplicingOff {
		n.log.Warn("connections between applications and the proxy are not spliced", "reason", s.HopsReason)
	}
	return nil
}

// unspliced is why nothing is spliced, or "".
func (n *Node) unspliced(s config.Splicing) string {
	switch {
	case s == config.SplicingOff:
		return "off in the configuration"
	case n.splicePaused.Load():
		return "paused"
	}
	return ""
}

// SetSplice implements admin.Node.
func (n *Node) SetSplice(_ context.Context, s api.SpliceControl) (api.Splice, error) {
	n.splicePaused.Store(s.Pause)
	if err := n.applySplicing(n.conf.Load()); err != nil {
		return api.Splice{}, err
	}
	stats, err := n.capture.Stats()
	if err != nil {
		return api.Splice{}, err
	}
	n.log.Info("splicing", "on", stats.Splice.On, "reason", stats.Splice.Reason)
	return *n.spliceStatus(&stats), nil
}

// spliceStatus is what status says of the direct way.
func (n *Node) spliceStatus(stats *sockmap.Stats) *api.Splice {
	s := &api.Splice{
		On: stats.Splice.On, Paused: stats.Splice.Paused != "", Reason: stats.Splice.Reason,
		Test: stats.Splice.Test.Took, Accepted: stats.Splice.Test.Accepted,
	}
	r := directReading(stats)
	s.Opened, s.Active, s.Spliced = r.Opened, n.openDirectly(), r.Spliced
	s.Sent, s.Received, s.Redirected, s.Fallbacks = r.Sent, r.Received, r.Redirected, r.Fallbacks
	s.Hops, s.Blind = splicedHops(stats), stats.Splice.Blind
	for _, r := range stats.Readers {
		s.Unfit = append(s.Unfit, api.UnfitReader{Workload: display(r.Workload), Service: display(r.Service), Reason: unfit(r.Why)})
	}
	return s
}

func unfit(why sockmap.Fallback) string {
	if why == sockmap.FallbackReader {
		return "reads with splice(2)"
	}
	return "blocks after connecting without blocking"
}

// directReading sums what went without the proxy.
func directReading(stats *sockmap.Stats) telemetry.DirectReading {
	r := telemetry.DirectReading{On: stats.Splice.On, Fallbacks: make(map[string]uint64)}
	for i := range stats.Traffic {
		t := &stats.Traffic[i]
		r.Pairs = append(r.Pairs, telemetry.DirectPair{
			Workload: display(t.Source), Service: display(t.Service),
			Opened: t.Opened, Closed: t.Closed, Spliced: t.Spliced, Sent: t.Sent, Received: t.Received, Redirected: t.Redirected,
		})
		r.Opened += t.Opened
		r.Closed += t.Closed
		r.Spliced += t.Spliced
		r.Sent += t.Sent
		r.Received += t.Received
		r.Redirected += t.Redirected
		for why, c := range t.Fallbacks {
			r.Fallbacks[why.String()] += c
		}
	}
	return r
}
