package allotment_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/semaphore"
)

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
