// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
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
			Help: "TLS handshakes, by role, result (ok, failed) and the reason of those that failed.",
		}, []string{"role", "result", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "handshake_duration_seconds",
			Help:    "Duration of the TLS handshakes that succeeded.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"role"}),
	}
	r.MustRegister(h.total, h.duration)
	for _, role := range []Role{Client, Server} {
		// Zeros from the start: rate() misses a series' first increment.
		h.total.WithLabelValues(string(role), "ok", reason.None.String())
		h.duration.WithLabelValues(string(role))
	}
	return h
}

// Done counts a handshake that took d; why is reason.None when it succeeded.
func (h *Handshakes) Done(role Role, why reason.Reason, d time.Duration) {
	result := "ok"
	if why != reason.None {
		result = "failed"
	} else {
		h.duration.WithLabelValues(string(role)).Observe(d.Seconds())
	}
	h.total.WithLabelValues(string(role), result, why.String()).Inc()
}
