// SPDX-License-Identifier: Apache-2.0

package load

import (
	"slices"
	"time"

	"github.com/meshproxy/meshproxy/tests/testnet"
)

// Result is what a client measured in its window, the time after it has warmed
// up.
type Result struct {
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes,omitempty"` // moved by bulk streams
	Count   uint64  `json:"count,omitempty"` // round trips or connections
	// Latency of a round trip, or of a connection from connect to its first
	// answer, in nanoseconds.
	P50 uint64 `json:"p50ns,omitempty"`
	P99 uint64 `json:"p99ns,omitempty"`
	// CPU is the processor time, in seconds, that each of the cgroups used in
	// the window.
	CPU map[string]float64 `json:"cpu,omitempty"`
}

// Window says when to measure, and whose processor time. Clients keep it open
// until there is a result, which may take its time where others want the
// processor.
type Window struct {
	Warm, Length time.Duration
	Cgroups      []string
}

// meter reads clocks at both ends of the window.
type meter struct {
	window    Window
	opens     time.Time
	closes    time.Time
	began     time.Time
	cpu       []time.Duration
	err       error
	inside    bool
	latencies []uint32 // in units of 10 ns
}

// newMeter starts to count time.
func newMeter(w Window, samples int) *meter {
	now := time.Now()
	m := &meter{window: w, opens: now.Add(w.Warm), closes: now.Add(w.Warm + w.Length)}
	m.cpu = make([]time.Duration, len(w.Cgroups))
	// Touched now, so that pages aren't faulted in while measuring.
	m.latencies = make([]uint32, samples)
	for i := range m.latencies {
		m.latencies[i] = 1
	}
	m.latencies = m.latencies[:0]
	return m
}

// tick says whether now is within the window, and whether it is over.
func (m *meter) tick(now time.Time) (inside, over bool) {
	if !m.inside {
		if now.Before(m.opens) {
			return false, false
		}
		m.inside = true
		m.read(1)
		m.began = time.Now()
		m.closes = m.began.Add(m.window.Length)
		return true, false
	}
	return true, !now.Before(m.closes)
}

// read adds the cgroups' clocks, times sign.
func (m *meter) read(sign time.Duration) {
	for i, g := range m.window.Cgroups {
		d, err := testnet.CPUTime(g)
		if err != nil {
			m.err = err
		}
		m.cpu[i] += -sign * d
	}
}

// sample remembers a latency, as long as there is room.
func (m *meter) sample(d time.Duration) {
	if len(m.latencies) < cap(m.latencies) {
		m.latencies = append(m.latencies, uint32(min(d/10, 1<<32-1)))
	}
}

// result ends the window.
func (m *meter) result() (Result, error) {
	r := Result{Seconds: time.Since(m.began).Seconds(), CPU: map[string]float64{}}
	m.read(-1)
	for i, g := range m.window.Cgroups {
		r.CPU[g] = m.cpu[i].Seconds()
	}
	if n := len(m.latencies); n > 0 {
		slices.Sort(m.latencies)
		r.P50 = uint64(m.latencies[n/2]) * 10
		r.P99 = uint64(m.latencies[min(n-1, n*99/100)]) * 10
	}
	return r, m.err
}
