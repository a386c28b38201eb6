//go:build unix

package integration

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// This file holds what a chaos run waits for after a fault, and what it asserts at each step and at
// its end.

// settle waits until the whole capacity is in use, and every process known, for some samples in a
// row. All permits but one are enough, at any capacity: outside of calms one process pauses, so
// permits are always moving.
func (r *chaos) settle(what string) {
	r.t.Helper()
	const inARow = 20
	since := time.Now()
	for _, at := range r.vacant {
		// A newcomer must not be the first: so wait until the others are back.
		r.await("the sessions of the others", func() bool {
			l, recent := r.queues.now()
			return recent &&
				l.sessions >= chaosProcesses-len(r.vacant)
		})
		r.fleet.launch(at).w.joined(r.t)
	}
	r.vacant = nil
	row, state := 0, ""
	for deadline := since.Add(settleTimeout); row < inARow; time.Sleep(sampleEvery) {
		l, _ := r.ledger.last()
		q, recent := r.queues.now()
		capacity := r.queues.capacityOf()
		used := !l.down && l.at.After(since) &&
			len(l.backends) >= int(minUsed*float64(capacity)) && len(l.backends) <= capacity
		if used && recent && q.at.After(since) && q.sessions == chaosProcesses &&
			len(q.permits) <= capacity && len(q.waiters) > 0 {
			row++
			continue
		}
		row = 0
		state = fmt.Sprintf("%v\n%d sessions, %d permits, %d waiters, %d plain permits, %d plain "+
			"waiters, recent: %v",
			l, q.sessions, len(q.permits), len(q.waiters), len(q.plainPermits),
			len(q.plainQueue), recent)
		if time.Now().After(deadline) {
			r.fail("%v after %s the fleet has not recovered: %s", settleTimeout, what, state)
		}
		if r.ledger.violated() != "" {
			r.check()
		}
	}
}

// rest waits until the whole capacity was in use, to the last permit, and no permit has moved for a
// while. Every process could use more than its share by now. A request that an outage delayed can
// hold a permit without a holder for one lease; any longer would be a leak. Until waiters retry,
// the shares that an outage left can stay uneven. On an overloaded machine permits never stop
// moving.
func (r *chaos) rest() {
	r.t.Helper()
	r.await("moment with the whole capacity in use", func() bool {
		l, _ := r.ledger.last()
		return !l.down && len(l.backends) == r.queues.capacityOf()
	})
	const still, patience = semaphore.DefaultRetryInterval + 200*time.Millisecond, 5 * time.Second
	for deadline := time.Now().Add(patience); len(r.ledger.openedSince(
		time.Now().Add(-still))) > 0 && time.Now().Before(deadline); {
		time.Sleep(sampleEvery)
	}
}

// await polls, because its condition depends on other processes.
func (r *chaos) await(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(settleTimeout); !ok(); time.Sleep(sampleEvery) {
		if time.Now().After(deadline) {
			r.fail("after %v still no %s", settleTimeout, what)
		}
	}
}

// bounds waits for the end of the step's windows, and asserts that none covered more than it may.
func (r *chaos) bounds() {
	for _, e := range r.excuse {
		r.ledger.mu.Lock()
		until, covered := e.until, e.covered
		r.ledger.mu.Unlock()
		time.Sleep(time.Until(until))
		if covered > e.most {
			r.fail("%s: %d backends at once, want at most %d", e.why, covered, e.most)
		}
	}
}

// check fails if there was a violation so far.
func (r *chaos) check() {
	r.t.Helper()
	if text := r.ledger.violated(); text != "" {
		r.fail("backends: %s", text)
	}
	if text := r.queues.violated(); text != "" {
		r.fail("Redis, in a calm: %s", text)
	}
	bad := r.fleet.unexpected()
	if _, late := r.ledger.last(); late > stoodStill && len(bad) > 0 {
		r.t.Logf("the machine stood still for %v: %d operations failed", late, len(bad))
		return
	}
	if len(bad) > 0 {
		r.fail("%d operations failed that no fault explains:\n%s", len(bad),
			strings.Join(bad[:min(10, len(bad))], "\n"))
	}
}

// fail ends the run, and reports all that is known.
func (r *chaos) fail(format string, args ...any) {
	r.t.Helper()
	r.t.Logf("last output of the processes:\n%s", r.fleet.logs())
	r.ledger.mu.Lock()
	recent := r.ledger.recentText()
	r.ledger.mu.Unlock()
	_, late := r.ledger.last()
	q, _ := r.queues.now()
	r.t.Logf("last samples, one of them %v late, the last of Redis at %s:\n%s", late,
		q.at.Format(clock), recent)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	keys := r.queues.pools.All()
	r.t.Logf("in Redis: meta %v", r.redis().HGetAll(ctx, keys[2]).Val())
	for i, key := range keys {
		switch i {
		case 0, 1, 3, 6, 9:
			for _, z := range r.redis().ZRangeWithScores(ctx, key, 0, -1).Val() {
				r.t.Logf("%s: %v %.3f", key, z.Member, z.Score)
			}
		case 7, 8, 11, 12:
			r.t.Logf("%s: %v", key, r.redis().HGetAll(ctx, key).Val())
		}
	}
	r.t.Logf("slow commands of Redis: %v\nits log:\n%s", r.redis().SlowLogGet(ctx, 5).Val(),
		r.primary.Log())
	r.t.Fatalf("seed %d: %s\nschedule up to here:\n%s", r.seed, fmt.Sprintf(format, args...),
		strings.Join(r.done, "\n"))
}

// end ends the fleet in good order, and asserts that nothing is left but meta and the log of changes.
func (r *chaos) end() {
	r.ledger.begin(&episode{waiting: r.queues.someoneWaits}, "the end")
	r.fleet.tell(end)
	for _, p := range r.fleet.places {
		r.fleet.ended(p.process)
	}
	r.check()
	left := func() (text string) {
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		defer cancel()
		for _, keys := range [][]string{r.queues.pools.All(), r.queues.plain.All()} {
			for _, key := range keys {
				stays := strings.HasSuffix(key, ":meta") || strings.HasSuffix(key, ":events")
				if n := r.redis().Exists(ctx, key).Val(); n > 0 && !stays {
					text += fmt.Sprintf("%s is left in Redis; ", key)
				}
			}
		}
		if l, _ := r.ledger.last(); l.down || len(l.backends) > 0 {
			text += l.String()
		}
		return text
	}
	text := left()
	for deadline := time.Now().Add(chaosTTL + grace); text != "" &&
		time.Now().Before(deadline); time.Sleep(sampleEvery) {
		text = left()
	}
	if text != "" {
		r.fail("after the end: %s", text)
	}
}
