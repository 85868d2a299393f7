// SPDX-License-Identifier: Apache-2.0

package telemetry

import "github.com/prometheus/client_golang/prometheus"

func newAudited(r prometheus.Registerer) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "policy_audited_total",
		Help: "Connections that were allowed only because policy is audited, by the policy that would deny them; none is the default.",
	}, []string{"direction", "policy"})
	r.MustRegister(c)
	return c
}

// Audited counts a connection that is allowed only because policy is audited,
// and logs it unless too many like it were logged just now. policy would deny
// it.
func (m *Metrics) Audited(r Record, policy, detail string) {
	m.auditedTotal.WithLabelValues(string(r.Direction), policy).Inc()
	if m.accessLog != nil {
		r.Policy = policy
		m.accessLog.limited(&Entry{Record: r, Time: m.now(), Audited: true, Detail: detail})
	}
}
