package allotment_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// hijacker is a pool that had its connections in use hijacked, but for so many.
type hijacker struct {
	*process
	acquired func() int
}

func (h *hijacker) Acquired() int { return h.acquired() }

// startHijacker is startAs for such a pool.
func (fl *fleet) startHijacker(
	cfg semaphore.Config, opts allotment.Options, acquired func() int,
) *hijacker {
	fl.t.Helper()
	h := &hijacker{process: fl.startAs(cfg, allotment.Options{}), acquired: acquired}
	h.another(opts, h)
	return h
}

// another gives p another pool, in the same session.
func (p *process) another(opts allotment.Options, pool allotment.Pool) {
	p.fl.t.Helper()
	if opts.AcquireTimeout == 0 {
		opts.AcquireTimeout = 30 * time.Second
	}
	p.Allotment = allotment.New(pool, opts)
	if err := p.Join(p.sem.Engine(engine.Seam{})); err != nil {
		p.fl.t.Fatal(err)
	}
}

// holdOpen is hold of a connection that its pool knows to be open.
func (p *process) holdOpen() *allotment.Slot {
	c := p.hold(p.fl.t.Context())
	c.Attach(p)
	return c
}

// finish ends a checkout of p.
func (p *process) finish(c *allotment.Slot, perCheckout bool) {
	if perCheckout {
		p.fl.count(-1) // before another may be opened
		c.Gone()
		return
	}
	p.release(c)
}

// A checkout of a minute counts as a long one, and the newest of all has an age.
func TestLongUses(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 3, func(t *testing.T, fl *fleet) {
			// Heartbeats look, too, at times that are drawn: none comes within this lease.
			p := fl.startAs(semaphore.Config{TTL: time.Hour},
				allotment.Options{PerCheckout: perCheckout})
			is := func(newest time.Duration, long int) {
				t.Helper()
				if f := p.Report(); f.NewestUse != newest || f.LongUse != long {
					t.Errorf("%d long uses, the newest for %v; want %d, %v",
						f.LongUse, f.NewestUse, long, newest)
				}
			}
			is(0, 0)
			first := p.holdOpen()
			is(0, 0)
			met := time.Now()
			time.Sleep(30 * time.Second)
			is(30*time.Second, 0)
			second := p.holdOpen()
			is(0, 0)
			again := time.Now()
			time.Sleep(time.Minute - time.Since(met) - time.Nanosecond)
			is(time.Since(again), 0)
			time.Sleep(time.Nanosecond)
			is(time.Since(again), 1)
			time.Sleep(31 * time.Second)
			is(time.Since(again), 2)
			p.finish(second, perCheckout)
			is(time.Since(met), 1)
			p.finish(first, perCheckout)
			is(0, 0)
		})
	})
}

// A connection that is in use, and not acquired in its pool, was hijacked.
func TestHijackedAreCounted(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 5, func(t *testing.T, fl *fleet) {
			acquired, change := 0, func() {}
			p := fl.startHijacker(semaphore.Config{TTL: time.Hour},
				allotment.Options{PerCheckout: perCheckout}, func() int { change(); return acquired })
			is := func(when string, want int) {
				t.Helper()
				if f := p.Report(); f.Hijacked != want {
					t.Errorf("%s: %d hijacked, want %d", when, f.Hijacked, want)
				}
			}
			is("none in use", 0)
			held := []*allotment.Slot{p.holdOpen(), p.holdOpen(), p.holdOpen()}
			acquired = 3
			is("all acquired", 0)
			acquired = 4
			is("one is acquired, but not checked out yet", 0)
			acquired = 1
			is("one acquired", 2)
			acquired = -1
			is("not known", 0)

			byHand := p.holdOpen()
			byHand.OpenedByHand()
			acquired = 2
			is("one was opened by hand", 1)

			dialing := p.hold(t.Context())
			is("one has no connection yet", 1)
			p.finish(dialing, perCheckout)

			// A checkout ends between the two looks.
			change = func() {
				change = func() {}
				acquired = 1
				p.finish(held[0], perCheckout)
			}
			is("one came back meanwhile", 1)

			// One begins.
			var late *allotment.Slot
			change = func() {
				change = func() {}
				acquired = 2
				late = p.holdOpen()
			}
			is("one more meanwhile", 1)
			acquired = 1
			p.finish(late, perCheckout)

			// One ends, and one begins, in each of them.
			churn := p.holdOpen()
			change = func() { p.finish(churn, perCheckout); acquired = 0; churn = p.holdOpen() }
			is("others come and go", 1)
			change = func() {}
			for _, c := range []*allotment.Slot{churn, byHand, held[1], held[2]} {
				p.finish(c, perCheckout)
			}
			is("all came back", 0)
		})
	})
}

// Connections that stay out of one process's pool are named to the callers of another that holds
// nothing itself, and logged once for each pool.
func TestConnectionsThatStayOutAreNamed(t *testing.T) {
	cases := map[string]struct {
		acquired int
		min      int // of the holder
		before   time.Duration
		want     string
		warned   int
	}{
		"hijacked":              {before: 24 * time.Second, want: "2 of 2 permits are held by hijacked connections, the oldest for 2", warned: 0},
		"in use for long":       {acquired: 2, before: 70 * time.Second, want: "2 of 2 permits are held by connections in use for over a minute, the oldest for 1m", warned: 1},
		"both":                  {acquired: 1, before: 70 * time.Second, want: "2 of 2 permits are held by hijacked connections (1) and by others in use for over a minute (1), the oldest for 1m", warned: 1},
		"kept by a minimum":     {before: 70 * time.Second, min: 2, want: "by hijacked connections, the oldest for 1m"},
		"in use for a moment":   {acquired: 2, before: 10 * time.Second},
		"more than the minimum": {before: 70 * time.Second, min: 1, want: "by hijacked connections, the oldest for 1m", warned: 1},
	}
	for _, name := range subset.Of(t, 2, slices.Sorted(maps.Keys(cases))) {
		c := cases[name]
		t.Run(name, func(t *testing.T) {
			scopes(t, func(t *testing.T, perCheckout bool) {
				inFleet(t, 2, func(t *testing.T, fl *fleet) {
					log := new(bubble.Log)
					opts := allotment.Options{PerCheckout: perCheckout, Name: "events",
						AcquireTimeout: 5 * time.Second}
					holder := fl.startHijacker(semaphore.Config{Logger: log.Logger(), Min: c.min}, opts,
						func() int { return c.acquired })
					held := []*allotment.Slot{holder.holdOpen(), holder.holdOpen()}
					other := fl.start(opts)
					time.Sleep(c.before)
					_, err := other.Enter(t.Context(), true)
					text := "nil"
					if err != nil {
						text = err.Error()
					}
					if !strings.Contains(text, semaphore.ErrCapacity.Error()) ||
						!strings.Contains(text, c.want) ||
						strings.Contains(text, "docs/HELD-CONNECTIONS.md") != (c.want != "") ||
						strings.Contains(text, "came back") {
						t.Errorf("refused with %s\nwant %q", text, c.want)
					}
					said := log.Lines("stay out of their pool")
					if len(said) != c.warned || c.warned > 0 && (!strings.Contains(said[0], "pool=events") ||
						!strings.Contains(said[0], "semaphore=passbuddy-semaphore")) {
						t.Errorf("logged %d lines, want %d: %q", len(said), c.warned, said)
					}
					time.Sleep(50 * time.Second)
					in := 1
					if c.min == 2 {
						in = 0
					}
					if said := log.Lines("stay out of their pool"); len(said) != in {
						t.Errorf("logged %d lines in the end, want %d: %q", len(said), in, said)
					}
					for _, s := range held {
						holder.finish(s, perCheckout)
					}
				})
			})
		})
	}
}

// Hijacked connections of a process whose own callers wait are logged at once.
func TestHijackedAreLoggedAtOnceWhereCallersWait(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		log := new(bubble.Log)
		p := fl.startHijacker(semaphore.Config{Logger: log.Logger()},
			allotment.Options{Name: "events", AcquireTimeout: 10 * time.Second}, func() int { return 0 })
		held := []*allotment.Slot{p.holdOpen(), p.holdOpen()}
		time.Sleep(20 * time.Second)
		if said := log.Lines("level=WARN"); len(said) != 0 {
			t.Errorf("nobody waits: %q", said)
		}
		if _, err := p.Enter(t.Context(), true); err == nil ||
			!strings.Contains(err.Error(), "2 of 2 permits are held by hijacked connections") ||
			strings.Contains(err.Error(), "came back") { // nobody waits for those
			t.Errorf("refused with %v", err)
		}
		said := log.Lines("level=WARN")
		if len(said) != 1 || !strings.Contains(said[0], "pool=events hijacked=2") ||
			!strings.Contains(said[0], "docs/HELD-CONNECTIONS.md") {
			t.Errorf("logged %q", said)
		}
		for _, c := range held {
			p.release(c)
		}
	})
}
