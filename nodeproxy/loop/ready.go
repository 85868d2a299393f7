// SPDX-License-Identifier: Apache-2.0

package loop

// Resumer continues work that was too much for one turn.
type Resumer interface{ Resume() }

// Flusher sends what a turn has gathered.
type Flusher interface{ Flush() }

// Again calls r once more: in this turn when the ready list has not been worked
// off yet, else in the next. The caller keeps r from being listed twice; a
// Resumer that was closed meanwhile must bear the call.
func (l *Loop) Again(r Resumer) { l.ready = append(l.ready, r) }

// EndOfTurn calls f once at the end of this turn, after everybody else had
// their say. The caller keeps f from being listed twice; a Flusher that was
// closed meanwhile must bear the call.
func (l *Loop) EndOfTurn(f Flusher) { l.flushes = append(l.flushes, f) }

// resume gives those who wait at the start of this step one go each. Who asks
// again meanwhile gets it in the next turn, after fresh events.
func (l *Loop) resume() {
	if l.resumable < 0 {
		l.resumable = min(len(l.ready)-l.readyAt, maxResumed)
	}
	for l.resumable > 0 {
		r := l.ready[l.readyAt]
		l.ready[l.readyAt] = nil
		l.readyAt++
		l.resumable--
		l.running = r
		r.Resume()
	}
	l.running = nil
	if l.readyAt == len(l.ready) {
		l.ready, l.readyAt = l.ready[:0], 0
	} else if l.readyAt > maxResumed {
		n := copy(l.ready, l.ready[l.readyAt:])
		clear(l.ready[n:])
		l.ready, l.readyAt = l.ready[:n], 0
	}
}

// flush calls the flushers. A flush may ask for another one, of the same or
// of somebody else; after a few rounds of that the rest waits for the next turn.
func (l *Loop) flush() {
	for ; l.flushRound < flushRounds && len(l.flushes) > 0; l.flushRound++ {
		n := len(l.flushes)
		for l.flushAt < n {
			f := l.flushes[l.flushAt]
			l.flushes[l.flushAt] = nil
			l.flushAt++
			l.running = f
			f.Flush()
		}
		l.flushAt = 0
		m := copy(l.flushes, l.flushes[n:])
		clear(l.flushes[m:])
		l.flushes = l.flushes[:m]
	}
	l.running = nil
}
