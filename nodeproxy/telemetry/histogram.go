// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"sync/atomic"
	"time"
)

// connectBuckets are the upper bounds of the connect latency's buckets: from a
// connection on one machine to the usual connect timeout.
var connectBuckets = [...]time.Duration{
	500 * time.Microsecond,
	time.Millisecond,
	2500 * time.Microsecond,
	5 * time.Millisecond,
	10 * time.Millisecond,
	25 * time.Millisecond,
	50 * time.Millisecond,
	100 * time.Millisecond,
	250 * time.Millisecond,
	500 * time.Millisecond,
	time.Second,
	2500 * time.Millisecond,
	5 * time.Second,
	10 * time.Second,
}

// histogram counts durations. It is a fifth of the size of a
// prometheus.Histogram, and there is one per pair and loop.
type histogram struct {
	buckets [len(connectBuckets) + 1]atomic.Uint64 // the last one is +Inf
	sum     atomic.Int64                           // nanoseconds
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(connectBuckets) && d > connectBuckets[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// addTo adds the histogram's figures to cumulative ones.
func (h *histogram) addTo(c *cumulative) {
	for i := range h.buckets {
		c.buckets[i] += h.buckets[i].Load()
	}
	c.sum += time.Duration(h.sum.Load())
}

// cumulative is a sum over histograms.
type cumulative struct {
	buckets [len(connectBuckets) + 1]uint64
	sum     time.Duration
}

// prometheus returns what prometheus.NewConstHistogram wants: the count, the
// sum in seconds, and cumulative buckets by upper bound in seconds.
func (c *cumulative) prometheus() (count uint64, sum float64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(connectBuckets))
	for i, bound := range connectBuckets {
		count += c.buckets[i]
		buckets[bound.Seconds()] = count
	}
	return count + c.buckets[len(connectBuckets)], c.sum.Seconds(), buckets
}
