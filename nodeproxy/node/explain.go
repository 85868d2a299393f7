// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/meshproxy/meshproxy/discovery/mesh"
	"github.com/meshproxy/meshproxy/nodeproxy/admin/api"
	"github.com/meshproxy/meshproxy/nodeproxy/policy"
)

// explainPolicy answers `meshproxy policy test`: it resolves names as people
// write them, asks the engine, and says on what the answer rests.
func explainPolicy(s *mesh.Snapshot, engine *policy.Engine, q api.PolicyQuery) (api.PolicyExplanation, error) {
	answer := api.PolicyExplanation{Query: q}
	request, err := resolveSource(s, q.From)
	if err != nil {
		return answer, err
	}
	if err := resolveTarget(s, q, &request, &answer); err != nil {
		return answer, err
	}
	e := engine.Explain(request)
	answer.Allowed = e.Decision.Allowed
	answer.Policy = e.Decision.Policy
	answer.Audited = e.Decision.Audited
	answer.Conclusion = e.Conclusion
	if !request.Identity.IsZero() {
		answer.Identity = request.Identity.String()
	}
	answer.Workload = display(request.Workload)
	for _, n := range request.Services {
		answer.Services = append(answer.Services, n.String())
	}
	answer.Port = request.Port
	for _, step := range e.Steps {
		answer.Steps = append(answer.Steps, api.PolicyStep{
			Policy: step.Policy, Action: string(step.Action), Audit: step.Audit, Precedence: step.Precedence,
			Outcome: string(step.Outcome), Why: step.Why,
		})
	}
	return answer, nil
}

// display is a name for people; the zero Name is nothing.
func display(n mesh.Name) string {
	if n == (mesh.Name{}) {
		return ""
	}
	return n.String()
}

// parseName reads "name" or "namespace/name".
func parseName(text string) mesh.Name {
	if ns, n, ok := strings.Cut(text, "/"); ok {
		return mesh.Name{Namespace: ns, Name: n}
	}
	return mesh.Name{Namespace: mesh.DefaultNamespace, Name: text}
}

// resolveSource takes a SPIFFE ID, an address (plaintext), or the name of a
// workload of this node or of a service's endpoints.
func resolveSource(s *mesh.Snapshot, from string) (policy.Request, error) {
	switch {
	case from == "":
		return policy.Request{}, invalid("from: want a workload, a SPIFFE ID or an address")
	case strings.HasPrefix(from, "spiffe://"):
		id, err := spiffeid.FromString(from)
		if err != nil {
			return policy.Request{}, invalid("from: %q: %v", from, err)
		}
		return policy.Request{Identity: id}, nil
	}
	if a, err := netip.ParseAddr(from); err == nil {
		return policy.Request{Source: netip.AddrPortFrom(a.Unmap(), 0)}, nil
	}
	n := parseName(from)
	if w := s.Workload(n); w != nil {
		return policy.Request{Identity: w.Identity}, nil
	}
	for _, svc := range s.Services() {
		for _, e := range svc.Endpoints {
			if e.Workload.Canonical() == n.Canonical() && !e.Identity.IsZero() {
				return policy.Request{Identity: e.Identity}, nil
			}
		}
	}
	return policy.Request{}, notFound("from: no workload %q; give a SPIFFE ID for one that this node does not know", from)
}

// resolveTarget takes a service, or "workload:name".
func resolveTarget(s *mesh.Snapshot, q api.PolicyQuery, r *policy.Request, answer *api.PolicyExplanation) error {
	if name, ok := strings.CutPrefix(q.To, "workload:"); ok {
		return resolveWorkload(s, parseName(name), q, r)
	}
	svc := s.Service(parseName(q.To))
	if svc == nil {
		if s.Workload(parseName(q.To)) != nil {
			return resolveWorkload(s, parseName(q.To), q, r)
		}
		return notFound("to: no service or workload %q", q.To)
	}
	i := 0
	if q.Port != 0 {
		if i = svc.PortIndex(q.Port); i < 0 {
			return invalid("port: service %s has no port %d, only %s", svc.Name, q.Port, portList(svc))
		}
	}
	r.Services = []mesh.Name{svc.Name}
	e := preferLocal(svc, s.Node().Name)
	if e == nil {
		answer.Note = "the service has no endpoint; the service's port stands for the workload's"
		r.Port = svc.Ports[i].Port
		return nil
	}
	r.Port = e.Ports[i]
	r.Workload = e.Workload
	if e.Node != s.Node().Name {
		answer.Note = fmt.Sprintf("the endpoint is on node %s, whose policies decide; these are the policies of this node", e.Node)
	}
	if targets := s.LocalEndpoints(e.AddrPort(i)); len(targets) > 1 {
		r.Services = r.Services[:0]
		for _, t := range targets {
			r.Services = append(r.Services, t.Service.Name)
		}
	}
	return nil
}

func resolveWorkload(s *mesh.Snapshot, n mesh.Name, q api.PolicyQuery, r *policy.Request) error {
	w := s.Workload(n)
	if w == nil {
		return notFound("to: no workload %q on this node", n)
	}
	if q.Port == 0 {
		return invalid("port: want one, since %s is a workload", n)
	}
	r.Workload, r.Port = w.Name, q.Port
	return nil
}

// preferLocal returns an endpoint on this node if there is one: its policies
// are those that the node has.
func preferLocal(svc *mesh.Service, node string) *mesh.Endpoint {
	var any *mesh.Endpoint
	for _, e := range svc.Endpoints {
		if e.Node == node {
			return e
		}
		if any == nil {
			any = e
		}
	}
	return any
}

func portList(svc *mesh.Service) string {
	var list []string
	for _, p := range svc.Ports {
		list = append(list, fmt.Sprint(p.Port))
	}
	return strings.Join(list, ", ")
}

func invalid(format string, args ...any) error {
	return &api.Error{Kind: api.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &api.Error{Kind: api.KindNotFound, Message: fmt.Sprintf(format, args...)}
}
