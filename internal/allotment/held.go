package allotment

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// Some connections stay out of their pool: for ever, as one that listens or was hijacked, or until
// their callers get another connection. No recall takes back their permits. This file counts them
// when somebody looks, so that a checkout pays nothing, and names them to a caller that is refused.

// An Acquirer is a [Pool] whose connections can leave it for good while they are in use.
type Acquirer interface {
	// Acquired is how many connections the pool has handed out, or -1 if that is not known. The
	// allotment's lock is not held.
	Acquired() int
}

// pooledUse is one checkout of a slot.
type pooledUse struct {
	s *Slot
	n uint64
}

// countHijacked counts the slots whose connections are in use, and not their pool's any more. The
// pool hears nothing of a Hijack. But a slot in use that has a connection is acquired in its pool,
// unless that connection was hijacked or opened by hand: a checkout begins after, and ends before.
// So the number of such slots, less what is acquired, is never too large, provided that none of the
// checkouts began or ended between the two looks. Where they do each time, the last count stays.
func (a *Allotment) countHijacked() {
	pool, ok := a.pool.(Acquirer)
	if !ok {
		return
	}
	const tries = 3
	for range tries {
		a.mu.Lock()
		before := a.pooledUses()
		a.mu.Unlock()
		acquired := pool.Acquired()
		a.mu.Lock()
		same := len(a.pooledUses()) == len(before)
		for _, u := range before {
			same = same && u.s.state == out && u.s.uses == u.n
		}
		if same {
			a.hijacked = 0
			if acquired >= 0 {
				a.hijacked = max(0, len(before)-acquired)
			}
		}
		a.mu.Unlock()
		if same {
			return
		}
	}
}

// pooledUses lists the checkouts of connections that the pool has opened. In PerCheckout a slot is
// out before its caller has a connection, and nothing is attached to it then.
func (a *Allotment) pooledUses() (list []pooledUse) {
	for s := range a.all {
		if s.state == out && s.attached != nil && !s.byHand {
			list = append(list, pooledUse{s, s.uses})
		}
	}
	return list
}

// OpenedByHand tells that the connection of s, which is checked out, was never the pool's: a user
// has opened it with the pool's configuration.
func (s *Slot) OpenedByHand() {
	s.a.mu.Lock()
	s.byHand = true
	s.a.mu.Unlock()
}

// ages tells how long the oldest and the newest of the checkouts are known to last, and how many
// last for long.
func (a *Allotment) ages(now time.Time) (oldest, newest time.Duration, long int) {
	newest = -1
	for s := range a.all {
		if s.state != out || a.opts.PerCheckout && s.closing() {
			continue
		}
		age := s.inUse(now)
		oldest = max(oldest, age)
		if newest < 0 || age < newest {
			newest = age
		}
		if age >= message.LongUse {
			long++
		}
	}
	return oldest, max(newest, 0), long
}

// explainAfter is how long a caller has waited at least before its error speaks of those that hold
// the permits: shorter waits are ordinary.
const explainAfter = time.Second

// explain adds to err, the refusal of a caller at capacity, which connections stay out, as far as
// that is known:
//
//   - those of the fleet that are hijacked, or in use for long;
//   - those of this process, if none came back for as long as the caller waited. A caller that
//     holds one connection and asks for another can wait for itself, or for its peers in other
//     processes that do the same. An advisory lock is held on the first, and the work is done over
//     the second. Only AcquireTimeout can end that wait. Work that takes as long looks the same
//     from here, so the words are right for both.
//
// The sign of the second is that no checkout of this pool ended meanwhile. So returns counts the
// ends of checkouts. Keep does not count: it is refused while any caller waits. If nothing of this
// pool is out, the session tells of the other pools of this process.
func (a *Allotment) explain(err error, w *waiter) error {
	now := time.Now()
	waited := now.Sub(w.began)
	if waited < min(explainAfter, a.opts.AcquireTimeout) {
		return err
	}
	var fleet, here string
	if a.holders != nil {
		fleet, here = a.holders()
	}
	switch {
	case w.out > a.hijacked && a.slots.returns == w.returns:
		oldest, _, _ := a.ages(now)
		here = fmt.Sprintf("none of the %d connections that pool %q has checked out, "+
			"the first at least %v ago, came back in the %v of the wait", w.out, a.name,
			max(oldest, waited).Round(time.Second), waited.Round(time.Millisecond))
	case a.slots.n[out] > 0:
		here = ""
	}
	if fleet != "" {
		err = fmt.Errorf("%w; %s", err, fleet)
	}
	if here != "" {
		err = fmt.Errorf("%w; %s: %s", err, here, message.OutCause)
	}
	if fleet+here != "" {
		err = fmt.Errorf("%w: see %s", err, message.HeldDocument)
	}
	return err
}
