// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meshproxy/meshproxy/nodeproxy/telemetry/reason"
)

// Role is the side of a handshake.
type Role string

// The roles.
const (
	Client Role = "client"
	Server Role = "server"
)

// Handshakes counts TLS handshakes.
type Handshakes struct {
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newHandshakes(r prometheus.Registerer) *Handshakes {
	h := &Handshakes{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "handshakes_total",
			Help: "TLS handshakes, by role, result (ok, failed), the reason of those that failed, and whether those that succeeded resumed a session.",
		}, []string{"role", "result", "reason", "resumed"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "handshake_duration_seconds",
			Help:    "Duration of the TLS handshakes that succeeded.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"role"}),
	}
	r.MustRegister(h.total, h.duration)
	for _, role := range []Role{Client, Server} {
		// Zeros from the start: rate() misses a series' first increment.
		for _, resumed := range []string{"false", "true"} {
			h.total.WithLabelValues(string(role), "ok", reason.None.String(), resumed)
		}
		h.duration.WithLabelValues(string(role))
	}
	return h
}

// Done counts a handshake that took d; why is reason.None when it succeeded, and
// resumed says whether it did so with a session of before.
func (h *Handshakes) Done(role Role, why reason.Reason, resumed bool, d time.Duration) {
	result := "ok"
	if why != reason.None {
		result = "failed"
	} else {
		h.duration.WithLabelValues(string(role)).Observe(d.Seconds())
	}
	h.total.WithLabelValues(string(role), result, why.String(), strconv.FormatBool(resumed)).Inc()
}
