// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"io"
	"strings"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
	"github.com/meshproxy/meshproxy/tests/meshnode"
	"github.com/meshproxy/meshproxy/tests/testnet"
)

// tunnelPort is where tunnels arrive.
const tunnelPort = 15008

// finding is one expectation and what came of it.
type finding struct {
	text string
	ok   bool
	// why says what was seen instead.
	why string
}

// verdict is the list of all findings.
type verdict []finding

func (v *verdict) expect(ok bool, text, why string, args ...any) {
	*v = append(*v, finding{text, ok, fmt.Sprintf(why, args...)})
}

func (v verdict) failures() int {
	n := 0
	for _, f := range v {
		if !f.ok {
			n++
		}
	}
	return n
}

func (v verdict) write(w io.Writer) {
	fmt.Fprintln(w, "VERDICT")
	for _, f := range v {
		if f.ok {
			fmt.Fprintf(w, "  ok    %s\n", f.text)
			continue
		}
		fmt.Fprintf(w, "  FAIL  %s: %s\n", f.text, f.why)
	}
	if n := v.failures(); n > 0 {
		fmt.Fprintf(w, "%d of %d expectations failed\n", n, len(v))
		return
	}
	fmt.Fprintf(w, "all %d expectations hold\n", len(v))
}

// judge compares what was seen with what a mesh has to do. The capture must be
// synchronized.
func (s *stage) judge(all []*traffic, o *observer) verdict {
	var v verdict
	s.judgeWire(&v)
	for i, t := range all {
		c := &calls[i]
		switch {
		case c.want == denied:
			v.judgeDenied(c, t, o.of(c))
		case c.service != "":
			s.judgeMeshed(&v, c, t, o.of(c))
		default:
			s.judgePlain(&v, c, t, o.of(c))
		}
	}
	return v
}

func (s *stage) judgeWire(v *verdict) {
	packets, _, dropped := s.wire.Totals()
	before, meshed, plain := s.wire.Contains(s.before), s.wire.Contains(s.meshed), s.wire.Contains(s.plain)
	tunnels := len(s.wire.Flows(tunnelFlow))
	v.expect(before > 0, "control: without the mesh, the marker of the same calls is on the wire", "not seen in %d packets", packets)
	v.expect(plain > 0, "control: the marker of calls beside the mesh is on the wire", "not seen in %d packets", packets)
	v.expect(meshed == 0 && dropped == 0, "the marker of calls within the mesh is never on the wire",
		"seen %d times; %d packets were not looked at", meshed, dropped)
	v.expect(tunnels > 0, "the nodes talk through tunnels", "no connection to port %d on the wire", tunnelPort)
}

// judgeMeshed is about a call to a service of the mesh.
func (s *stage) judgeMeshed(v *verdict, c *call, t *traffic, seen sighting) {
	name := fmt.Sprintf("%s calls %s by name", c.from(), c.service)
	mayFail := 0
	if c.outlives {
		name += fmt.Sprintf(": %s, and when that is gone %s", c.to[0], strings.Join(c.to[1:], ", "))
		mayFail = 2
	}
	v.expect(t.requests > 0 && t.errors <= mayFail && t.answeredBy(c.to), name,
		"%d answers from %v, %d errors %s", t.requests, t.servers, t.errors, t.err)
	v.expect(t.seenFrom(s.ipOf(c.place)), fmt.Sprintf("%s sees %s at its true address %s, in accept and getpeername", c.service, c.from(), s.ipOf(c.place)),
		"seen at %s, accept and getpeername agree: %v", t.clientText(), !t.disagree)
	from, to := meshnode.Identity(c.workload), meshnode.Identity(c.service)
	v.expect(list(seen.paths) == c.path, fmt.Sprintf("%s to %s goes by %s", c.from(), c.service, c.path), "the node says %q", list(seen.paths))
	v.expect(list(seen.from) == from && list(seen.to) == to, fmt.Sprintf("%s to %s with the workloads' own identities", c.from(), c.service),
		"the node says %q to %q", list(seen.from), list(seen.to))
}

// judgePlain is about a call that the mesh has no part in.
func (s *stage) judgePlain(v *verdict, c *call, t *traffic, seen sighting) {
	text := fmt.Sprintf("%s reaches %s, which is outside the mesh, as if there were none", c.from(), c.target())
	if c.workload == "" {
		text = fmt.Sprintf("%s, which is no workload, reaches %s untouched", c.from(), c.target())
	}
	if c.workload != "" {
		v.expect(list(seen.paths) == c.path, fmt.Sprintf("%s to %s is passed through", c.from(), c.target()), "the node has counted none")
	}
	dialled := s.addrOf(*c.server).String()
	v.expect(t.requests > 0 && t.errors == 0 && t.seenFrom(s.ipOf(c.place)) && t.peer == dialled, text,
		"%d answers, %d errors %s, seen at %s, peer %s instead of %s", t.requests, t.errors, t.err, t.clientText(), t.peer, dialled)
}

// judgeDenied is about a call that must not get through; one by a workload for
// the right reason.
func (v *verdict) judgeDenied(c *call, t *traffic, seen sighting) {
	if c.workload == "" {
		v.expect(t.requests == 0 && t.errors > 0,
			fmt.Sprintf("%s, which is no workload of the mesh, is refused by %s, which takes mutual TLS only", c.from(), c.target()),
			"%d answers, %d errors", t.requests, t.errors)
		return
	}
	byPolicy := seen.ended[reason.PeerDenied.String()] > 0 || seen.ended[reason.PolicyDenied.String()] > 0
	v.expect(t.requests == 0 && t.errors > 0 && byPolicy, fmt.Sprintf("%s is refused by %s, as policy says", c.from(), c.target()),
		"%d answers, %d errors, the node's reasons: %v", t.requests, t.errors, seen.ended)
}

func tunnelFlow(f testnet.Flow) bool {
	return f.Destination.Port() == tunnelPort && f.Bytes > 0
}
