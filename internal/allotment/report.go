package allotment

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
)

// This file tells operators how the pool fares: by Report when they ask, and by observations as it
// happens. A warm checkout pays one increment for it (Slot.uses), and reads no clock.

var _ engine.Reporter = (*Allotment)(nil)

// ConnCounter is a [Pool] whose connections are not slots: with Options.PerCheckout, a slot is a
// checkout.
type ConnCounter interface {
	// CountConns counts the connections that are not in use. The allotment's lock is not held.
	CountConns() (idle, opening, closing int)
}

// A Checkout is attached to a slot by a ConnCounter that knows more of it than its state.
type Checkout interface {
	// Closing reports whether its connection was closed. The permit is kept until the backend has
	// ended. The allotment's lock is held.
	Closing() bool
}

// Report returns the pool's figures: see semaphore.PoolStats.
func (a *Allotment) Report() message.PoolFigures {
	a.countHijacked()
	var idleConns, opens, closes int
	if c, ok := a.pool.(ConnCounter); ok && a.opts.PerCheckout {
		idleConns, opens, closes = c.CountConns()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now, n := time.Now(), &a.slots.n
	f := a.counted
	f.Name = a.name
	f.InUse, f.Idle, f.Opening, f.Closing = n[out], n[idle], n[opening], n[leaving]
	for _, p := range a.permits.spare {
		if p != nil {
			f.Permits++
		}
	}
	if a.permits.lent != nil {
		f.Permits++
	}
	for s := range a.all {
		if s.permit != nil {
			f.Permits++
		}
		if a.opts.PerCheckout && s.closing() {
			f.InUse--
		}
	}
	f.OldestUse, f.NewestUse, f.LongUse = a.ages(now)
	f.Hijacked = min(a.hijacked, n[out])
	if a.opts.PerCheckout { // a checkout that opens its connection is out already
		f.InUse, f.Idle, f.Opening = max(0, f.InUse-opens), idleConns, opens
		f.Closing = max(closes, n[leaving])
	}
	for _, q := range []*queue{&a.waiters, &a.openers} {
		waiting, oldest := q.callers(now)
		f.Waiting += waiting
		f.OldestWait = max(f.OldestWait, oldest)
	}
	return f
}

// closing reports whether the connection of s, a checkout, was closed before that has ended.
func (s *Slot) closing() bool {
	c, ok := s.attached.(Checkout)
	return ok && s.state == out && c.Closing()
}

// inUse is how long the checkout of s is known to last, and 0 if s is not out. A checkout reads no
// clock. But two looks that find s out, and no checkout begun between them, see the same checkout.
func (s *Slot) inUse(now time.Time) time.Duration {
	if s.state != out {
		return 0
	}
	if s.seen != s.uses {
		s.seen, s.seenAt = s.uses, now
	}
	return now.Sub(s.seenAt)
}

// callers is how many callers wait in q, and for how long the first has. Urgent ones are ours, and
// at the head.
func (q *queue) callers(now time.Time) (n int, oldest time.Duration) {
	n = q.n
	r := q.next
	for ; r.v != nil && r.v.urgent; r = r.next {
		n--
	}
	if w := r.v; w != nil {
		oldest = w.wait.lasted + now.Sub(w.began)
	}
	return n, oldest
}

// wait sums up how long one checkout has waited for this pool, at all its stations. The allotment's
// lock guards it.
type wait struct {
	lasted time.Duration
	told   bool // the observer knows of it
}

// beginWait has w counted when its wait ends, unless it was served at once, or is ours.
func (a *Allotment) beginWait(w *waiter) { w.queued = w.next != nil && !w.urgent }

// endWait counts the wait of w at one station. A checkout that waits again counts as one still.
func (a *Allotment) endWait(w *waiter) {
	if !w.queued {
		return
	}
	w.queued = false
	lasted := max(time.Since(w.began), 1)
	if w.wait.lasted == 0 {
		a.counted.Waits++
	}
	w.wait.lasted += lasted
	a.counted.WaitTime += lasted
}

// refused counts what ended the wait of w, if err did, and tells the observer. It takes the lock.
func (a *Allotment) refused(ctx context.Context, w *waiter, err error) {
	if err == nil {
		return
	}
	a.mu.Lock()
	a.endWait(w)
	lasted := w.wait.lasted
	if lasted > 0 { // else it found its context done, and never waited
		*a.outcome(ctx, err)++
		w.wait.told = true
	}
	a.mu.Unlock()
	if lasted > 0 {
		a.tell(message.Observation{Kind: message.ObservedWait, Duration: lasted, Err: err})
	}
}

// outcome is the counter for waits that end like this one.
func (a *Allotment) outcome(ctx context.Context, err error) *int64 {
	switch {
	case errors.Is(err, core.ErrUnavailable):
		return &a.counted.Unavailable
	case errors.Is(err, core.ErrClosed), errors.Is(err, ErrPoolClosed):
		return &a.counted.Canceled
	case ctx.Err() == nil, errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &a.counted.Timeouts
	}
	return &a.counted.Canceled
}

// EndWait tells the observer how long the checkout of ctx has waited, if it has. It is called when
// the checkout waits for nothing more; the observer has heard of a refusal already. ctx descends
// from [Allotment.Bounded].
func (a *Allotment) EndWait(ctx context.Context) {
	if a.observe == nil {
		return
	}
	b, ok := ctx.Value(boundKey{a}).(*bound)
	if !ok {
		return
	}
	a.mu.Lock()
	lasted, told := b.wait.lasted, b.wait.told
	b.wait.told = told || lasted > 0
	a.mu.Unlock()
	if lasted > 0 && !told {
		a.tell(message.Observation{Kind: message.ObservedWait, Duration: lasted})
	}
}

// CountOpen counts an attempt to open a connection that began then, under its permit, and ends now.
// err is why it failed.
func (a *Allotment) CountOpen(began time.Time, err error) {
	took := time.Since(began)
	a.mu.Lock()
	if err == nil {
		a.counted.Opened++
		a.counted.OpenTime += took
	} else {
		a.counted.Failed++
	}
	a.mu.Unlock()
	a.tell(message.Observation{Kind: message.ObservedOpen, Duration: took, Err: err})
}

// tell tells the observer, if there is one. The lock is not held.
func (a *Allotment) tell(o message.Observation) {
	if a.observe != nil {
		o.Pool = a.name
		a.observe(o)
	}
}

const (
	defaultName  = "pool"
	maxNameBytes = 100
)

// cleanName is the name of a pool as it is shown to people: without control characters, and
// bounded.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, name)
	for len(name) > maxNameBytes {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	if name == "" {
		return defaultName
	}
	return name
}
