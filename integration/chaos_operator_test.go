//go:build unix

package integration

import (
	"context"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Faults that an operator makes with an Inspector. Nothing of it may exceed the capacity.

func (r *chaos) inspector() *semaphore.Inspector {
	i, err := semaphore.NewInspector(r.redis(), "", r.job.Semaphore)
	r.must(err)
	return i
}

// Grants are paused: pools go on with what they have.
func (r *chaos) paused(s step) {
	i := r.inspector()
	r.must(i.Pause(r.t.Context(), semaphore.PauseOptions{Reason: "chaos"}))
	r.hold(s)
	r.must(i.Resume(r.t.Context()))
	r.from(time.Now())
}

// Everything is taken back, and no backend is left. Callers wait, and none fails.
func (r *chaos) drained(s step) {
	i := r.inspector()
	ctx, cancel := context.WithTimeout(r.t.Context(), 4*time.Second)
	defer cancel()
	r.must(i.Pause(ctx, semaphore.PauseOptions{Drain: true, Reason: "chaos"}))
	r.hold(s)
	snap, err := i.Snapshot(ctx)
	r.must(err)
	if snap.Held > 0 {
		r.t.Errorf("%d permits held %v after the drain", snap.Held, s.length)
	}
	r.must(i.Resume(ctx))
	r.from(time.Now())
}

// A session is evicted. By force it loses what it still holds, and its callers notice.
func (r *chaos) evicted(s step) {
	i := r.inspector()
	began := time.Now()
	snap, err := i.Snapshot(r.t.Context())
	r.must(err)
	pid := r.fleet.places[s.process].process.w.cmd.Process.Pid
	force := s.way%2 == 0
	for _, session := range snap.Sessions {
		if session.PID != pid {
			continue
		}
		opts := semaphore.EvictOptions{Force: force, Reason: "chaos", Timeout: 5 * time.Second}
		if force {
			opts.Timeout = time.Millisecond
		}
		r.must(i.Evict(r.t.Context(), session.ID, opts))
	}
	r.hold(s)
	r.from(time.Now())
	if force {
		r.fleet.allow(s.process, began, time.Now().Add(grace))
	}
}
