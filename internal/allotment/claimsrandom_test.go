package allotment_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
)

// wrappers stands for database/sql in one process. It keeps the idle wrappers, and knows which slots
// are in use.
type wrappers struct {
	t     *testing.T
	p     *process
	mu    sync.Mutex
	idle  []wrapper
	used  map[*allotment.Slot]bool
	slots map[*allotment.Slot]bool // all that were ever opened
}

type wrapper struct {
	*allotment.Slot
	generation uint32
}

// use runs f, and fails if somebody else uses the slot.
func (l *wrappers) use(s *allotment.Slot, f func()) {
	set := func(yes bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.used[s] == yes {
			l.t.Error("two have one connection")
		}
		l.used[s] = yes
	}
	set(true)
	f()
	set(false)
}

// connect returns a slot that is out, or nil if ctx ends before.
func (l *wrappers) connect(ctx context.Context) *allotment.Slot {
	s, err := l.p.Enter(ctx, true)
	switch {
	case err != nil && s != nil:
		l.p.end(s)
		return nil
	case err != nil || s != nil:
		return s
	}
	if s, err = l.p.OpenWithin(ctx); err != nil {
		l.p.Exit()
		return nil
	}
	l.p.fl.count(1)
	time.Sleep(time.Millisecond)
	if !s.CheckOut() {
		l.p.Exit()
		s.Leave()
		l.p.end(s)
		return nil
	}
	l.mu.Lock()
	l.slots[s] = true
	l.mu.Unlock()
	return s
}

// take returns an idle wrapper, which leaves the list.
func (l *wrappers) take(dice *rand.Rand) (w wrapper, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) == 0 {
		return w, false
	}
	i, last := dice.IntN(len(l.idle)), len(l.idle)-1
	w, l.idle[i] = l.idle[i], l.idle[last]
	l.idle = l.idle[:last]
	return w, true
}

// closeIdle closes a wrapper that lay idle.
func (l *wrappers) closeIdle(w wrapper) {
	if w.LeaveAt(w.generation) {
		l.use(w.Slot, func() {})
		l.p.end(w.Slot)
	}
}

// checkOut uses the connection of an idle wrapper, or of a new one.
func (l *wrappers) checkOut(ctx context.Context, dice *rand.Rand) {
	w, ok := l.take(dice)
	if ok && !w.Retake(w.generation) { // a bad connection, to database/sql
		pause(dice, 2)
		l.closeIdle(w)
		return
	}
	if !ok {
		if w.Slot = l.connect(ctx); w.Slot == nil {
			return
		}
		w.generation = w.Generation()
	}
	l.use(w.Slot, func() { pause(dice, 6) })
	switch {
	case dice.IntN(10) == 0: // found bad
		if !w.LeaveAt(w.generation) {
			l.t.Error("another has claimed a connection in use")
		}
		l.p.end(w.Slot)
	case w.Keep():
		l.mu.Lock()
		l.idle = append(l.idle, w)
		l.mu.Unlock()
	default:
		l.park(w.Slot)
	}
}

func (l *wrappers) lend(ctx context.Context, dice *rand.Rand) {
	s := l.connect(ctx)
	if s == nil {
		return
	}
	l.use(s, func() { pause(dice, 6) })
	if !s.Unclaim() {
		l.park(s)
	}
}

func (l *wrappers) park(s *allotment.Slot) {
	if !s.Park() {
		s.Leave()
		l.p.end(s)
	}
}

func (l *wrappers) evict(dice *rand.Rand) {
	l.mu.Lock()
	var all []*allotment.Slot
	for s := range l.slots {
		all = append(all, s)
	}
	l.mu.Unlock()
	for _, s := range all {
		if dice.IntN(4) == 0 && s.LeaveIdle() {
			l.use(s, func() {})
			l.p.end(s)
		}
	}
}

// check: nobody uses anything, so each idle slot lies in one wrapper, or parked.
func (l *wrappers) check() {
	in := make(map[*allotment.Slot]int)
	for _, w := range l.idle {
		if w.Current(w.generation) {
			in[w.Slot]++
		}
	}
	for _, n := range in {
		if n > 1 {
			l.t.Errorf("a connection lies in %d wrappers", n)
		}
	}
	f := l.p.Figures()
	parked, _ := l.p.SweepParked(0)
	for _, s := range parked {
		if in[s] > 0 {
			l.t.Error("a connection lies parked, and in a wrapper")
		}
		l.p.end(s)
	}
	if f.Idle != len(in)+len(parked) || f.Turns != 0 || f.Out != 0 || f.Waiting != 0 {
		l.t.Errorf("%d connections lie in wrappers and %d parked: %+v", len(in), len(parked), f)
	}
}

// pause lasts n half milliseconds at most.
func pause(dice *rand.Rand, n int) {
	time.Sleep(time.Duration(dice.IntN(n+1)) * 500 * time.Microsecond)
}

// Connections are used by wrappers, claimed, lent, evicted, recalled and closed, while callers give
// up. No two have one connection, and none lies where nobody finds it.
func TestRandomClaims(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for range subset.Length(10, 150) {
		seed++
		inFleet(t, 3, func(t *testing.T, fl *fleet) {
			p, other := fl.start(allotment.Options{}), fl.start(allotment.Options{})
			l := &wrappers{t: t, p: p, used: make(map[*allotment.Slot]bool),
				slots: make(map[*allotment.Slot]bool)}
			var wg sync.WaitGroup
			for i := range uint64(5) {
				wg.Go(func() {
					dice := rand.New(rand.NewPCG(seed, i))
					for range 60 {
						ctx, cancel := context.WithTimeout(t.Context(),
							time.Duration(dice.IntN(10))*500*time.Microsecond)
						switch dice.IntN(8) {
						case 0, 1, 2:
							l.checkOut(ctx, dice)
						case 3, 4, 5:
							l.lend(ctx, dice)
						case 6: // too many idle ones
							if w, ok := l.take(dice); ok {
								l.closeIdle(w)
							}
						case 7:
							pause(dice, 10)
						}
						cancel()
						pause(dice, 2)
					}
				})
			}
			wg.Go(func() {
				dice := rand.New(rand.NewPCG(seed, 99))
				for range 40 {
					pause(dice, 10)
					switch dice.IntN(3) {
					case 0:
						_ = other.use(t.Context(), time.Millisecond)
					case 1:
						p.Recall(1, 0)
						pause(dice, 1)
						p.Keep(1)
					case 2:
						l.evict(dice)
					}
				}
			})
			wg.Wait()
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			l.check()
			for _, w := range l.idle {
				l.closeIdle(w)
			}
			time.Sleep(100 * time.Millisecond)
			if f := p.Figures(); f.Owned != 0 {
				t.Errorf("left over: %+v", f)
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
