// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DNSResult is how a query of a workload was answered.
type DNSResult string

// The results.
const (
	DNSMesh      DNSResult = "mesh"      // a mesh name, with its virtual IPs
	DNSNoData    DNSResult = "no_data"   // a mesh name that has no record of the type
	DNSNoName    DNSResult = "no_name"   // within the mesh's domain, and unknown
	DNSForwarded DNSResult = "forwarded" // answered by the node's resolvers
	DNSTimeout   DNSResult = "timeout"   // the node's resolvers didn't answer
	DNSFailed    DNSResult = "failed"    // the node's resolvers couldn't be asked
	DNSRefused   DNSResult = "refused"   // malformed, or beyond a limit
)

var dnsResults = []DNSResult{DNSMesh, DNSNoData, DNSNoName, DNSForwarded, DNSTimeout, DNSFailed, DNSRefused}

// DNS counts the queries of workloads.
type DNS struct {
	queries  map[DNSResult]prometheus.Counter
	duration prometheus.Histogram
}

func newDNS(r prometheus.Registerer) *DNS {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "dns_queries_total", Help: "DNS queries of workloads, by how they were answered.",
	}, []string{"result"})
	d := &DNS{
		queries: make(map[DNSResult]prometheus.Counter, len(dnsResults)),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "dns_forward_duration_seconds",
			Help:    "Time until the node's resolvers answered.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
	r.MustRegister(total, d.duration)
	for _, result := range dnsResults {
		d.queries[result] = total.WithLabelValues(string(result))
	}
	return d
}

// Query counts a query that is answered; an unknown result counts as failed.
func (d *DNS) Query(result DNSResult) {
	c, ok := d.queries[result]
	if !ok {
		c = d.queries[DNSFailed]
	}
	c.Inc()
}

// Forwarded records how long the node's resolvers took.
func (d *DNS) Forwarded(took time.Duration) { d.duration.Observe(took.Seconds()) }
