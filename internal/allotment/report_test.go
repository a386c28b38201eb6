package allotment_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/semaphore"
)

// sightings is an observer.
type sightings struct {
	mu   sync.Mutex
	list []semaphore.Observation
}

func (s *sightings) Observe(o semaphore.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, o)
}

// of returns what was seen of that kind.
func (s *sightings) of(kind semaphore.ObservationKind) (list []semaphore.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.Kind == kind {
			list = append(list, o)
		}
	}
	return list
}

// hold takes a turn, and a slot that is out.
func (p *process) hold(ctx context.Context) *allotment.Slot {
	p.fl.t.Helper()
	c, err := p.Enter(ctx, true)
	if err == nil && c == nil {
		if c, err = p.OpenWithin(ctx); err == nil {
			p.fl.count(1)
			if !c.CheckOut() {
				err = errors.New("a new slot was refused")
			}
		}
	}
	if err != nil {
		p.fl.t.Fatal(err)
	}
	return c
}

// release ends what hold began.
func (p *process) release(c *allotment.Slot) {
	if !c.Return(true) {
		p.end(c)
	}
}

func scopes(t *testing.T, f func(t *testing.T, perCheckout bool)) {
	t.Helper()
	t.Run("PerConnection", func(t *testing.T) { f(t, false) })
	t.Run("PerCheckout", func(t *testing.T) { f(t, true) })
}

// A caller waits for the only permit, which another has. However that ends, it is one wait, of
// that length, and one observation.
func TestFiguresOfAWait(t *testing.T) {
	const after = 700 * time.Millisecond
	type action func(*process, context.CancelFunc, chan struct{}, *allotment.Slot)
	none := func(*process, context.CancelFunc, chan struct{}, *allotment.Slot) {}
	for name, c := range map[string]struct {
		timeout  time.Duration // AcquireTimeout
		deadline time.Duration // of the caller
		act      action
		want     message.PoolFigures
		err      error
	}{
		"granted": {
			act: func(p *process, _ context.CancelFunc, _ chan struct{}, held *allotment.Slot) {
				p.release(held)
			},
		},
		"AcquireTimeout": {
			timeout: after, act: none, want: message.PoolFigures{Timeouts: 1},
			err: semaphore.ErrCapacity,
		},
		"its deadline": {
			deadline: after, act: none, want: message.PoolFigures{Timeouts: 1},
			err: context.DeadlineExceeded,
		},
		"canceled": {
			act: func(_ *process, cancel context.CancelFunc, _ chan struct{}, _ *allotment.Slot) {
				cancel()
			},
			want: message.PoolFigures{Canceled: 1}, err: context.Canceled,
		},
		"the pool is closed": {
			act: func(_ *process, _ context.CancelFunc, closing chan struct{}, _ *allotment.Slot) {
				close(closing)
			},
			want: message.PoolFigures{Canceled: 1}, err: allotment.ErrPoolClosed,
		},
		"the semaphore is closed": {
			act: func(p *process, _ context.CancelFunc, _ chan struct{}, _ *allotment.Slot) {
				go p.Closed()
			},
			want: message.PoolFigures{Canceled: 1}, err: semaphore.ErrClosed,
		},
		"Redis is away": {
			timeout: after, want: message.PoolFigures{Unavailable: 1},
			err: semaphore.ErrUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			scopes(t, func(t *testing.T, perCheckout bool) {
				inFleet(t, 1, func(t *testing.T, fl *fleet) {
					seen := new(sightings)
					p := fl.startAs(semaphore.Config{Observer: seen}, allotment.Options{
						PerCheckout: perCheckout, AcquireTimeout: c.timeout, Name: "orders",
					})
					held := p.hold(t.Context())
					before := p.Report() // it waited for its grant
					closing := make(chan struct{})
					ctx, cancel := context.WithCancel(t.Context())
					if c.deadline > 0 {
						ctx, cancel = context.WithTimeout(t.Context(), c.deadline)
					}
					defer cancel()
					ctx = p.Bounded(ctx, closing)
					if c.act == nil {
						fl.redis.SetError("LOADING Redis is away")
						defer fl.redis.SetError("")
					} else {
						time.AfterFunc(after, func() { c.act(p, cancel, closing, held) })
					}
					done := make(chan error)
					go func() {
						got, err := p.Enter(ctx, true)
						if err == nil && got == nil {
							got, err = p.OpenWithin(ctx)
						}
						p.EndWait(ctx)
						p.EndWait(ctx) // again, as the next station would
						if got != nil {
							defer got.Gone()
						}
						done <- err
					}()
					time.Sleep(after - 100*time.Millisecond)
					f := p.Report()
					if f.Waiting != 1 || f.OldestWait != after-100*time.Millisecond ||
						f.Waits != before.Waits {
						t.Errorf("while it waits: %+v", f)
					}
					err := <-done
					if !errors.Is(err, c.err) {
						t.Errorf("%v, want %v", err, c.err)
					}
					f = p.Report()
					got := message.PoolFigures{
						Waits: f.Waits - before.Waits, WaitTime: f.WaitTime - before.WaitTime,
						Timeouts: f.Timeouts, Canceled: f.Canceled, Unavailable: f.Unavailable,
						Waiting: f.Waiting, OldestWait: f.OldestWait, Name: f.Name,
					}
					want := c.want
					want.Name, want.Waits, want.WaitTime = "orders", 1, after
					if got != want {
						t.Errorf("got  %+v\nwant %+v", got, want)
					}
					waits := seen.of(semaphore.ObservedWait)
					if len(waits) != 1 || waits[0].Pool != "orders" || waits[0].Duration != after ||
						(waits[0].Err == nil) != (err == nil) || !errors.Is(waits[0].Err, c.err) {
						t.Errorf("observed %+v", waits)
					}
					if c.err != nil {
						go held.Gone()
					}
				})
			})
		})
	}
}

// A caller that waits for a turn and again for its permit has waited once, for both times.
func TestTwoStationsAreOneWait(t *testing.T) {
	for name, fails := range map[string]bool{"served": false, "refused": true} {
		t.Run(name, func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, fl *fleet) {
				seen := new(sightings)
				p := fl.startAs(semaphore.Config{Observer: seen},
					allotment.Options{AcquireTimeout: time.Second})
				held := p.hold(t.Context())
				before := p.Report() // it waited for its grant
				time.AfterFunc(300*time.Millisecond, func() {
					if !held.Return(true) {
						t.Error("it does not stay idle")
					}
				})
				ctx := p.Bounded(t.Context(), nil)
				if _, err := p.EnterPool(ctx); err != nil {
					t.Fatal(err)
				}
				held.Leave() // the pool closes it for its age, just before the caller takes it
				if fails {
					defer held.Gone()
				} else {
					time.AfterFunc(200*time.Millisecond, held.Gone)
				}
				time.Sleep(100 * time.Millisecond) // the caller is slow: that is no wait
				opened := make(chan *allotment.Slot)
				go func() {
					c, err := p.OpenWithin(ctx)
					if (err != nil) != fails {
						t.Error(err)
					}
					p.EndWait(ctx)
					opened <- c
				}()
				time.Sleep(50 * time.Millisecond)
				if f := p.Report(); f.Waiting != 1 || f.OldestWait != 350*time.Millisecond {
					t.Errorf("%+v", f)
				}
				if c := <-opened; c != nil {
					c.Gone()
				}
				p.Exit()
				want, timeouts := 400*time.Millisecond, int64(0)
				if fails {
					want, timeouts = 900*time.Millisecond, 1
				}
				f := p.Report()
				waited := f.WaitTime - before.WaitTime
				if n := f.Waits - before.Waits; n != 1 || waited != want || f.Timeouts != timeouts {
					t.Errorf("%d waits of %v, %d timeouts", n, waited, f.Timeouts)
				}
				waits := seen.of(semaphore.ObservedWait)
				if len(waits) != 1 || waits[0].Duration != want || (waits[0].Err != nil) != fails {
					t.Errorf("observed %+v", waits)
				}
				fl.count(-1)
			})
		})
	}
}

// Callers that need not wait, and those of this package's own, are not counted.
func TestNoWait(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		p.release(p.hold(t.Context()))
		first := p.Report().Waits // for its grant
		for range 10 {
			p.release(p.hold(t.Context()))
		}
		over, cancel := context.WithCancel(t.Context())
		cancel()
		held := []*allotment.Slot{p.hold(t.Context()), p.hold(t.Context())}
		waits := p.Report().Waits
		if _, err := p.Enter(over, true); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		f := p.Report()
		if first != 1 || waits != 2 || f.Waits != 2 || f.Canceled != 0 {
			t.Errorf("%d waits for the first permit, %d for two, %d at the end, %d canceled",
				first, waits, f.Waits, f.Canceled)
		}
		for _, c := range held {
			p.release(c)
		}
	})
}

// The search for backends passes the callers, and is none.
func TestUrgentCallersAreNotCounted(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := &ender{}
		a := fl.start(allotment.Options{})
		p.Allotment = allotment.New(p, allotment.Options{AcquireTimeout: time.Minute})
		p.Attach(a.fleetOf(t, p.Allotment))
		enter := func(ctx context.Context) {
			go func() {
				if _, err := p.Enter(ctx, false); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		enter(t.Context())
		enter(t.Context())
		time.Sleep(time.Second)
		p.enter = enter
		p.Allotment.EndBackends(t.Context(), []string{"1 2"})
		if f := p.Report(); f.Waiting != 1 || f.OldestWait != time.Second {
			t.Errorf("%d callers wait, the first for %v", f.Waiting, f.OldestWait)
		}
		before := p.Report().Waits
		for i, want := range []int64{0, 1} { // the urgent one first, then the caller
			p.Exit()
			synctest.Wait()
			if n := p.Report().Waits - before; n != want {
				t.Errorf("%d of %d served: %d waits", i+1, 2, n)
			}
		}
		p.Exit()
	})
}

// The pool cannot say when a checkout began, but since when it is known to last.
func TestOldestUse(t *testing.T) {
	scopes(t, func(t *testing.T, perCheckout bool) {
		inFleet(t, 2, func(t *testing.T, fl *fleet) {
			// Heartbeats look, too, at times that are drawn: none comes within this lease.
			p := fl.startAs(semaphore.Config{TTL: time.Hour},
				allotment.Options{PerCheckout: perCheckout})
			is := func(want time.Duration) {
				t.Helper()
				if got := p.Report().OldestUse; got != want {
					t.Errorf("%v, want %v", got, want)
				}
			}
			is(0)
			c := p.hold(t.Context())
			time.Sleep(time.Second)
			is(0) // no look has met it before
			met := time.Now()
			time.Sleep(time.Second)
			is(time.Second)
			other := p.hold(t.Context())
			time.Sleep(time.Second)
			is(time.Since(met))
			finish := p.release
			if perCheckout {
				finish = func(c *allotment.Slot) { c.Gone(); fl.count(-1) }
			}
			finish(c)
			is(0) // the other was not met yet
			time.Sleep(time.Second)
			is(time.Second)
			for range 3 { // one short use after the other is not a long one
				finish(other)
				time.Sleep(time.Second)
				is(0)
				other = p.hold(t.Context())
				is(0)
				time.Sleep(time.Second)
				finish(other)
				other = p.hold(t.Context())
				is(0)
			}
			finish(other)
			is(0)
		})
	})
}

// With claims, as in database/sql, a connection changes hands without lying idle between.
func TestOldestUseOfAClaimedSlot(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		c := p.hold(t.Context())
		p.Report()
		time.Sleep(time.Second)
		if !c.Keep() || !c.Retake(c.Generation()) {
			t.Fatal("not warm")
		}
		if got := p.Report().OldestUse; got != 0 {
			t.Errorf("taken again just now: %v", got)
		}
		go func() { time.Sleep(time.Second); c.Return(true) }()
		if claimed := p.hold(t.Context()); claimed != c {
			t.Fatal("another slot")
		}
		if got := p.Report().OldestUse; got != 0 {
			t.Errorf("claimed just now: %v", got)
		}
		time.Sleep(time.Second)
		if got := p.Report().OldestUse; got != time.Second {
			t.Errorf("%v, want 1s", got)
		}
		p.release(c)
	})
}

// Each state of a connection is its own figure, and all of them have permits.
func TestFiguresOfConnections(t *testing.T) {
	inFleet(t, 10, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{Name: "or\x00ders\n" + strings.Repeat("é", 100)})
		used := p.hold(t.Context())
		var idle []*allotment.Slot
		for range 2 {
			idle = append(idle, p.hold(t.Context()))
		}
		var closing []*allotment.Slot
		for range 3 {
			closing = append(closing, p.hold(t.Context()))
		}
		if _, err := p.Enter(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		opening, err := p.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range idle {
			c.Return(true)
		}
		for _, c := range closing {
			c.Leave()
		}
		f := p.Report()
		got := []int{f.InUse, f.Idle, f.Opening, f.Closing, f.Permits}
		if f.InUse != 1 || f.Idle != 2 || f.Opening != 1 || f.Closing != 3 || f.Permits != 7 {
			t.Errorf("in use, idle, opening, closing, permits: %d", got)
		}
		if want := "orders" + strings.Repeat("é", 47); f.Name != want {
			t.Errorf("its name is %q", f.Name)
		}
		if list := p.sem.Stats().Pools; len(list) != 1 || list[0].InUse != 1 || list[0].Idle != 2 {
			t.Errorf("the session reports %+v", list)
		}
		opening.Gone()
		p.Exit()
		used.Return(true)
		for _, c := range closing {
			c.Gone()
		}
		fl.count(-len(closing))
	})
}

// A pool of checkouts knows its idle connections, and those under way.
func TestFiguresOfCheckouts(t *testing.T) {
	inFleet(t, 5, func(t *testing.T, fl *fleet) {
		p := counter{fl.start(allotment.Options{PerCheckout: true})}
		p.Allotment = allotment.New(p,
			allotment.Options{PerCheckout: true, AcquireTimeout: time.Minute})
		if err := p.Join(p.sem.Engine(engine.Seam{})); err != nil {
			t.Fatal(err)
		}
		var held []*allotment.Slot
		for range 4 {
			held = append(held, p.hold(t.Context()))
		}
		f := p.Report()
		got := [...]int{f.InUse, f.Idle, f.Opening, f.Closing, f.Permits}
		if got != [...]int{3, 7, 1, 2, 4} {
			t.Errorf("in use, idle, opening, closing, permits: %d", got)
		}
		for _, c := range held {
			c.Gone()
		}
		fl.count(-4)
	})
}

// counter is a pool with 7 idle connections, one that is being opened, and two that are closed.
type counter struct{ *process }

func (counter) CountConns() (idle, opening, closing int) { return 7, 1, 2 }

func TestOpensAreCounted(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		seen := new(sightings)
		p := fl.startAs(semaphore.Config{Observer: seen}, allotment.Options{Name: "orders"})
		began := time.Now()
		time.Sleep(3 * time.Second)
		p.CountOpen(began, nil)
		refused := errors.New("connection refused")
		p.CountOpen(began.Add(time.Second), refused)
		p.CountOpen(began.Add(2*time.Second), nil)
		f := p.Report()
		if f.Opened != 2 || f.Failed != 1 || f.OpenTime != 4*time.Second {
			t.Errorf("opened %d in %v, %d failed", f.Opened, f.OpenTime, f.Failed)
		}
		opens := seen.of(semaphore.ObservedOpen)
		if len(opens) != 3 || opens[0].Duration != 3*time.Second || opens[0].Pool != "orders" ||
			opens[0].Err != nil || opens[1].Err != refused || opens[1].Duration != 2*time.Second {
			t.Errorf("observed %+v", opens)
		}
	})
}

// Permits that the fleet asks back, by recalls or in answer to offers, are counted when that is
// heard.
func TestRecallsAreCounted(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		var held []*allotment.Slot
		for range 3 {
			held = append(held, a.hold(t.Context()))
		}
		if n := a.Report().Recalled; n != 0 {
			t.Errorf("%d before anybody asked", n)
		}
		done := make(chan struct{})
		go func() { b.release(b.hold(t.Context())); close(done) }()
		time.Sleep(time.Second)
		if n := a.Report().Recalled; n != 1 {
			t.Errorf("%d recalled, one is wanted", n)
		}
		for _, c := range held {
			a.release(c)
		}
		<-done
		if n := a.Report().Recalled; n != 1 {
			t.Errorf("%d recalled, one was wanted", n)
		}
		a.Promised(2)
		if n := a.Report().Recalled; n != 3 {
			t.Errorf("%d recalled, after two more by an offer", n)
		}
	})
}

// A lost lease is counted, and observed without a lock held.
func TestLossesAreCounted(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		fl.over = 3
		var p *process
		var lost []message.PoolFigures
		seen := new(sightings)
		p = fl.startAs(semaphore.Config{TTL: time.Second, Observer: observerFunc(
			func(o semaphore.Observation) {
				seen.Observe(o)
				if o.Kind == semaphore.ObservedLoss {
					lost = append(lost, p.Report())
				}
			})}, allotment.Options{Name: "orders"})
		for range 2 {
			p.hold(t.Context())
		}
		fl.redis.SetError("LOADING Redis is away")
		time.Sleep(2 * time.Second)
		fl.redis.SetError("")
		synctest.Wait()
		if f := p.Report(); f.Lost != 2 || f.Permits != 0 {
			t.Errorf("%d lost, %d permits", f.Lost, f.Permits)
		}
		losses := seen.of(semaphore.ObservedLoss)
		if len(losses) != 2 || losses[0].Pool != "orders" || len(lost) != 2 ||
			lost[0].Lost != 1 || lost[0].Permits != 1 {
			t.Errorf("observed %+v, %+v", losses, lost)
		}
		time.Sleep(5 * time.Second)
	})
}

type observerFunc func(semaphore.Observation)

func (f observerFunc) Observe(o semaphore.Observation) { f(o) }

// A caller that is refused while the fleet is paused learns who paused it, and why.
func TestRefusalNamesThePause(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{AcquireTimeout: 5 * time.Second})
		held, out := p.hold(t.Context()), p.hold(t.Context())
		inspector, err := semaphore.NewInspector(p.sem.Client(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		inspector.Operator = "ann@laptop"
		err = inspector.Pause(t.Context(), semaphore.PauseOptions{Reason: "failover"})
		if err != nil {
			t.Fatal(err)
		}
		held.Leave()
		p.end(held)
		time.Sleep(10 * time.Second) // a heartbeat tells
		refused := func(ctx context.Context) {
			t.Helper()
			_, err := p.Enter(ctx, true)
			if !errors.Is(err, semaphore.ErrCapacity) ||
				!strings.Contains(err.Error(), "paused by ann@laptop: failover") ||
				strings.Contains(err.Error(), "came back in the") {
				t.Errorf("refused with: %v", err)
			}
		}
		refused(t.Context())
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		refused(short) // though the capacity is not used up
		if err := inspector.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.release(p.hold(t.Context()))
		p.release(out)
	})
}

// A caller that gives up at the moment in which it is served has waited once, and fails.
func TestServedWhileGivingUpIsOneWait(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		seen := new(sightings)
		p := fl.startAs(semaphore.Config{Observer: seen}, allotment.Options{})
		p.release(p.hold(t.Context()))
		before, refused := p.Report(), int64(0)
		const rounds, wait = 60, 10 * time.Millisecond
		for i := range rounds {
			held := p.hold(t.Context())
			ctx, cancel := context.WithCancel(p.Bounded(t.Context(), nil))
			time.AfterFunc(wait, func() {
				if i%2 == 0 {
					defer held.Return(true)
				} else {
					held.Return(true)
				}
				cancel()
			})
			c, err := p.Enter(ctx, true)
			p.EndWait(ctx)
			if err == nil {
				c.Return(true)
			} else {
				refused++
			}
			synctest.Wait() // the other is returned, so that the next round waits for nothing before
		}
		f := p.Report()
		n, waited := f.Waits-before.Waits, f.WaitTime-before.WaitTime
		if n != rounds || waited != rounds*wait || refused != rounds/2 || f.Canceled != refused {
			t.Errorf("%d waits of %v, %d refused, %d canceled", n, waited, refused, f.Canceled)
		}
		if waits := seen.of(semaphore.ObservedWait); len(waits) != rounds {
			t.Errorf("%d waits observed, want %d", len(waits), rounds)
		}
	})
}
