// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/config"
	"github.com/meshproxy/meshproxy/nodeproxy/identity"
	"github.com/meshproxy/meshproxy/sockmap"
)

var _ admin.Node = (*Node)(nil)

// lastError is the outcome of something that is tried again and again.
type lastError struct {
	mu  sync.Mutex
	err error
}

func (l *lastError) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (n *Node) startAdmin(context.Context) (err error) {
	if n.admin != nil {
		return nil // as a part of taking over
	}
	c := n.settingsFile()
	address := func(a interface {
		IsValid() bool
		String() string
	},
	) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	n.admin, err = admin.Start(admin.Options{
		Socket: c.Socket(), MetricsAddress: address(c.Listeners.Metrics), ReadinessAddress: address(c.Listeners.Readiness),
		Node: n, Metrics: n.metrics, Level: n.options.Level, Log: n.log, Listen: n.sockets.listen,
	})
	return err
}

// stopAdmin leaves the socket where it is for another process that has it too.
func (n *Node) stopAdmin() {
	switch {
	case n.admin == nil:
	case n.relieved() || !n.tookOver() || n.returning.Load():
		n.admin.Leave()
	default:
		n.admin.Close()
	}
}

// Live implements admin.Health.
func (n *Node) Live() error { return n.stuckLoop() }

// Status implements admin.Node.
func (n *Node) Status(context.Context) (api.Status, error) {
	c, s := n.settingsFile(), n.views.load().snapshot
	st := api.Status{
		Node: n.name, TrustDomain: n.trustDomain().Name(), Version: n.options.Version,
		PID: os.Getpid(), Started: n.started, State: n.state(),
		Snapshot: api.Snapshot{
			Version: s.Version(), Built: s.Built(), Services: len(s.Services()),
			Endpoints: s.EndpointCount(), Policies: len(s.Policies()),
		},
		Capture: n.captureStatus(c), Identity: n.identityStatus(c), Listeners: n.listenerStatus(c),
		Traffic: n.traffic(), Workloads: n.workloadCount(s), Upgrades: n.upgrades.status(),
	}
	if c.Node.Address.IsValid() {
		st.Address = c.Node.Address.String()
	}
	for _, src := range s.Sources() {
		st.Sources = append(st.Sources, api.Source{
			Name: src.Name, Ready: src.Ready, Stale: src.Stale, Since: src.Since, Error: src.Err, Warnings: src.Warnings,
		})
	}
	for _, r := range n.metrics.Refusals() {
		st.Refusals = append(st.Refusals, api.Refusal{Direction: string(r.Direction), Reason: r.Reason, Count: r.Count})
	}
	for i, w := range n.loops {
		stats := w.loop.Stats()
		st.Loops = append(st.Loops, api.Loop{Loop: i, Descriptors: stats.Registered, Turns: stats.Turns, Lag: stats.LongestTurn})
	}
	st.Peers = n.peers()
	n.reloads.mu.Lock()
	st.Config = api.ConfigStatus{File: c.File, LoadedAt: n.reloads.loadedAt, RestartNeeded: n.reloads.restart}
	if n.reloads.lastErr != nil {
		st.Config.LastError = n.reloads.lastErr.Error()
	}
	n.reloads.mu.Unlock()
	st.Problems = n.problems(&st)
	if len(st.Problems) > 0 && st.State == api.StateReady {
		st.State = api.StateDegraded
	}
	return st, nil
}

func (n *Node) state() api.State {
	switch {
	case n.draining.Load(), n.returning.Load():
		return api.StateDraining
	case !n.ready.Load():
		return api.StateStarting
	default:
		return api.StateReady
	}
}

// problems are what an operator should look at.
func (n *Node) problems(st *api.Status) (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if err := n.applyError.get(); err != nil {
		add("the kernel has not taken the snapshot: %v", err)
	}
	if err := n.pressure.shortage(); err != nil {
		add("%v", err)
	}
	if err := n.namespaces.lastProblem(); err != nil {
		add("%v", err)
	}
	if err := n.stuckLoop(); err != nil {
		add("%v", err)
	}
	for _, s := range st.Sources {
		if s.Error != "" {
			add("source %s: %s", s.Name, s.Error)
		}
		for _, w := range s.Warnings {
			add("source %s: %s", s.Name, w)
		}
	}
	if st.Config.LastError != "" {
		add("configuration was not reloaded: %s", st.Config.LastError)
	}
	if st.Upgrades.LastError != "" {
		add("the latest upgrade changed nothing: %s", st.Upgrades.LastError)
	}
	if st.Capture.Error != "" {
		add("capture: %s", st.Capture.Error)
	}
	if st.Identity.Error != "" {
		add("identity: %s", st.Identity.Error)
	}
	return list
}

func (n *Node) captureStatus(c *config.Config) api.Capture {
	st := api.Capture{
		Attached: true, CgroupRoot: n.cgroups.root,
		Pins: filepath.Join(c.BPF.FS, "meshproxy", c.BPF.Instance),
	}
	stats, err := n.capture.Stats()
	if err != nil {
		st.Error = err.Error()
		return st
	}
	for _, k := range stats.Connections {
		switch k.Outcome {
		case sockmap.OutcomeCaptured:
			st.Captured += k.Count
		case sockmap.OutcomePassthrough:
			st.Passthrough += k.Count
		case sockmap.OutcomeLocal:
			st.Local += k.Count
		}
	}
	for _, r := range stats.Refusals {
		st.Refused += r.Count
	}
	st.Flows = stats.Flows
	st.Splice = *n.spliceStatus(&stats)
	return st
}

func (n *Node) identityStatus(c *config.Config) api.Identity {
	sum := n.provider.Summary()
	st := api.Identity{Provider: string(c.Identity.Provider), Leaves: len(sum.Leaves)}
	for _, l := range sum.Leaves {
		if st.NextExpiry.IsZero() || l.NotAfter.Before(st.NextExpiry) {
			st.NextExpiry = l.NotAfter
		}
	}
	problems := sum.Problems
	if err := n.leaves.trouble.get(); err != nil {
		problems = append(problems, err.Error())
	}
	if len(problems) > 0 {
		st.Error = problems[0]
		if more := len(problems) - 1; more > 0 {
			st.Error += fmt.Sprintf("; and %d more", more)
		}
	}
	if n.leavesAreGiven() {
		st.Missing = n.withoutLeaf(sum.Leaves)
	}
	return st
}

// leavesAreGiven: the provider has the leaves that somebody gives it. Others
// make a leaf when it is first needed.
func (n *Node) leavesAreGiven() bool {
	p := n.settingsFile().Identity.Provider
	return p == config.ProviderFiles || p == config.ProviderConsul
}

// withoutLeaf are the workloads whose identities have none.
func (n *Node) withoutLeaf(leaves []identity.LeafSummary) (names []string) {
	for _, w := range n.views.load().snapshot.Workloads() {
		if !slices.ContainsFunc(leaves, func(l identity.LeafSummary) bool { return l.Identity == w.Identity }) {
			names = append(names, w.Name.String())
		}
	}
	return names
}

func (n *Node) listenerStatus(c *config.Config) (list []api.Listener) {
	for _, ns := range n.namespaces.all() {
		where := ""
		if !ns.own {
			where = fmt.Sprint(ns.cookie)
		}
		for _, ln := range ns.listeners.outbound {
			list = append(list, api.Listener{Name: "outbound", Address: ln.Addr().String(), NetNS: where})
		}
		if ln := ns.listeners.plain; ln != nil {
			list = append(list, api.Listener{Name: "inbound-plain", Address: ln.Addr().String(), NetNS: where})
		}
		for _, ln := range ns.listeners.dnsTCP {
			list = append(list, api.Listener{Name: "dns", Address: ln.Addr().String(), NetNS: where})
		}
	}
	list = append(list, api.Listener{Name: "inbound-hbone", Address: listenAddress(c.Listeners.InboundHBONE)})
	if at := c.Listeners.InboundMTLS; at.IsValid() {
		list = append(list, api.Listener{Name: "inbound-mtls", Address: listenAddress(at)})
	}
	for _, name := range []string{admin.ListenerAdmin, admin.ListenerMetrics, admin.ListenerReadiness} {
		if a := n.admin.Addr(name); a != nil {
			list = append(list, api.Listener{Name: name, Address: a.String()})
		}
	}
	return list
}

func (n *Node) traffic() api.Traffic {
	sum := n.metrics.Traffic()
	return api.Traffic{Active: sum.Active, Opened: sum.Opened, Sent: sum.Sent, Received: sum.Received}
}

func (n *Node) workloadCount(s *mesh.Snapshot) api.WorkloadCount {
	count := api.WorkloadCount{Configured: len(s.Workloads()), Running: len(n.cgroups.cgroupsOf(s.Workloads()))}
	off := n.bypassed.all()
	for _, w := range s.Workloads() {
		if w.Bypass || off[w.Canonical()] {
			count.Bypassed++
		}
	}
	return count
}

// SetBypass implements admin.Node.
func (n *Node) SetBypass(ctx context.Context, b api.Bypass) error {
	w := n.views.load().snapshot.Workload(parseName(b.Workload))
	if w == nil {
		return notFound("no workload %q on this node", b.Workload)
	}
	if !b.Bypass && w.Bypass {
		return &api.Error{Kind: api.KindConflict, Message: fmt.Sprintf("workload %s is bypassed by configuration", w.Name)}
	}
	n.bypassed.set(w.Name, b.Bypass)
	n.log.Info("bypass", "workload", w.Name, "on", b.Bypass)
	if err := n.reloads.applied(ctx); err != nil {
		return err
	}
	return n.applyError.get()
}

// Reload implements admin.Node.
func (n *Node) Reload(ctx context.Context) (api.Reload, error) {
	r, err := n.reloads.wait(ctx, false)
	if err != nil && ctx.Err() == nil {
		err = &api.Error{Kind: api.KindInvalid, Message: err.Error()}
	}
	return r, err
}

// Upgrade implements admin.Node.
func (n *Node) Upgrade(ctx context.Context) (api.Upgrade, error) {
	r, err := n.reloads.wait(ctx, true)
	switch {
	case err != nil && ctx.Err() == nil:
		return api.Upgrade{}, &api.Error{Kind: api.KindConflict, Message: err.Error()}
	case err != nil:
		return api.Upgrade{}, err
	}
	return *r.Upgrade, nil
}

// Drain implements admin.Node.
func (n *Node) Drain(context.Context) (api.Drain, error) {
	n.beginDrain()
	open := 0
	for _, w := range n.loops {
		open += w.open()
	}
	return api.Drain{Active: open}, nil
}

// ExplainPolicy implements admin.Node.
func (n *Node) ExplainPolicy(_ context.Context, q api.PolicyQuery) (api.PolicyExplanation, error) {
	v := n.views.load()
	return explainPolicy(v.snapshot, v.engine, q)
}
