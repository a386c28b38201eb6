package allotment_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A fleet is some processes with one pool each, on one Redis and one Postgres, in a bubble of fake
// time. The Postgres counts its backends: it is the witness.
type fleet struct {
	t        *testing.T
	redis    *miniredis.Miniredis
	capacity int
	connect  time.Duration // how long a connect takes
	over     int           // how many backends above the capacity a test allows for

	mu       sync.Mutex
	backends int
	peak     int
	connects int
}

const (
	connectTime = 3 * time.Millisecond
	endTime     = time.Millisecond // from closing a connection to the end of its backend
)

func inFleet(t *testing.T, capacity int, f func(t *testing.T, fl *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fl := &fleet{t: t, redis: miniredis.NewMiniRedis(), capacity: capacity, connect: connectTime}
		t.Cleanup(func() {
			time.Sleep(2 * time.Second) // go-redis's dialling goroutines look once a second whether their pool is closed
			fl.redis.Close()
		})
		f(t, fl)
		if _, peak, _ := fl.witness(); peak > capacity+fl.over {
			t.Errorf("%d backends at the peak, capacity %d, and %d allowed for", peak, capacity, fl.over)
		}
	})
}

// process is one process of the fleet with one pool.
type process struct {
	*allotment.Allotment
	fl  *fleet
	sem *semaphore.Semaphore
	ops int
	max time.Duration // longest wait for a checkout
}

func (fl *fleet) start(opts allotment.Options) *process {
	fl.t.Helper()
	return fl.startAs(semaphore.Config{}, opts)
}

// startAs is start for a process with limits of its own.
func (fl *fleet) startAs(cfg semaphore.Config, opts allotment.Options) *process {
	fl.t.Helper()
	client := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Protocol: 2, DisableIdentity: true,
		Dialer: func(context.Context, string, string) (net.Conn, error) { return fl.redis.Dial() },
	})
	cfg.Capacity = fl.capacity
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	sem, err := semaphore.New(context.Background(), client, cfg)
	if err != nil {
		fl.t.Fatal(err)
	}
	if opts.AcquireTimeout == 0 {
		opts.AcquireTimeout = 30 * time.Second
	}
	p := &process{fl: fl, sem: sem}
	p.Allotment = allotment.New(p, opts)
	if err := p.Join(sem.Engine(engine.Seam{})); err != nil {
		fl.t.Fatal(err)
	}
	fl.t.Cleanup(func() {
		if err := sem.Close(); err != nil {
			fl.t.Errorf("Close: %v", err)
		}
		client.Close()
	})
	return p
}

func (p *process) Evict() bool {
	c := p.EvictIdle()
	if c != nil {
		p.end(c)
	}
	return c != nil
}

func (p *process) Abort(c *allotment.Slot) {
	c.Leave()
	p.end(c)
}

// end closes a connection that is leaving.
func (p *process) end(c *allotment.Slot) {
	go func() {
		time.Sleep(endTime)
		p.fl.count(-1)
		c.Gone()
	}()
}

func (fl *fleet) count(n int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.backends += n
	fl.peak = max(fl.peak, fl.backends)
	if n > 0 {
		fl.connects++
	}
}

// witness tells how many backends there are, how many there were at the most, and how many were
// ever opened.
func (fl *fleet) witness() (now, peak, connects int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return fl.backends, fl.peak, fl.connects
}

// use checks a connection out, holds it for d, and returns it.
func (p *process) use(ctx context.Context, d time.Duration) error {
	began := time.Now()
	c, err := p.Enter(ctx, true)
	if err != nil {
		return err
	}
	p.fl.mu.Lock()
	p.max = max(p.max, time.Since(began))
	p.fl.mu.Unlock()
	if c == nil {
		if c, err = p.Open(ctx); err != nil {
			p.Exit()
			return fmt.Errorf("open: %w", err)
		}
		p.fl.count(1)
		time.Sleep(p.fl.connect)
		if !c.CheckOut() {
			return fmt.Errorf("a new connection was refused")
		}
	}
	time.Sleep(d)
	p.fl.mu.Lock()
	p.ops++
	p.fl.mu.Unlock()
	if !c.Return(true) {
		p.end(c)
	}
	return nil
}

// load runs n goroutines that use connections of p until ctx ends.
func (p *process) load(ctx context.Context, wg *sync.WaitGroup, n int, d time.Duration) {
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				if err := p.use(context.WithoutCancel(ctx), d); err != nil {
					p.fl.t.Errorf("use: %v", err)
					return
				}
			}
		}()
	}
}

func (fl *fleet) held() int {
	members, err := fl.redis.ZMembers("passbuddy-semaphore")
	if err != nil {
		return 0
	}
	return len(members)
}

// A caller must not wait for the fleet while its own process returns what it needs.
func TestNoSelfStarvation(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		p.load(ctx, &wg, 2, time.Millisecond)
		wg.Wait()
		if _, _, connects := fl.witness(); p.ops < 900 || connects != 1 {
			t.Errorf("%d operations of 1ms in 1s with %d connects, want nearly 1000 with one", p.ops, connects)
		}
		if p.max > 2*connectTime {
			t.Errorf("longest wait %v, want a few turns", p.max)
		}
	})
}

func TestTwoProcessesAlternateAtCapacityOne(t *testing.T) {
	long := subset.Length(3*time.Second, 10*time.Second)
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		var wg sync.WaitGroup
		a.load(ctx, &wg, 2, time.Millisecond)
		b.load(ctx, &wg, 2, time.Millisecond)
		wg.Wait()
		if lo, hi := min(a.ops, b.ops), max(a.ops, b.ops); float64(lo) < 0.8*float64(hi) {
			t.Errorf("operations %d and %d: not shared", a.ops, b.ops)
		}
		if most := max(a.max, b.max); most > 300*time.Millisecond {
			t.Errorf("longest wait %v: more than a few turns", most)
		}
		if a.ops+b.ops < 850*int(long/time.Second) {
			t.Errorf("%d operations of 1ms in %v: too much time is spent on reconnects", a.ops+b.ops, long)
		}
	})
}

// The only permit lies idle in one of two processes, and the other wants it, in turn. A wait is
// bounded by the patience of an idle permit, which grows with what moves have cost, and by one
// move.
func TestTheOnlyPermitGoesBackAndForth(t *testing.T) {
	for connect, most := range map[time.Duration]time.Duration{connectTime: 50 * time.Millisecond, 30 * time.Millisecond: 300 * time.Millisecond} {
		inFleet(t, 1, func(t *testing.T, fl *fleet) {
			fl.connect = connect
			ps := []*process{fl.start(allotment.Options{}), fl.start(allotment.Options{})}
			for i := range 12 {
				began := time.Now()
				if err := ps[i%2].use(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > most {
					t.Errorf("connects of %v: the permit came after %v", connect, took)
				}
			}
		})
	}
}

// Idle permits move before their turn in rotation comes. Those moves do not put off the turn of a
// process that waits when the other is busy.
func TestMovesOfIdlePermitsPutOffNoTurn(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		fl.connect = 30 * time.Millisecond
		ps := []*process{fl.start(allotment.Options{}), fl.start(allotment.Options{})}
		for i := range 60 {
			if err := ps[i%2].use(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		ps[1].load(ctx, &wg, 4, time.Millisecond)
		time.Sleep(time.Second)
		began := time.Now()
		if err := ps[0].use(t.Context(), 0); err != nil {
			t.Error(err)
		}
		// a turn comes after 20 moves, each of a connect and some milliseconds
		if took := time.Since(began); took > time.Second {
			t.Errorf("served after %v, want at most 1s", took)
		}
		cancel()
		wg.Wait()
	})
}

func TestIdlePermitGoesToAWaiter(t *testing.T) {
	for _, capacity := range []int{1, 5} {
		t.Run(fmt.Sprint(capacity), func(t *testing.T) {
			inFleet(t, capacity, func(t *testing.T, fl *fleet) {
				a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
				var wg sync.WaitGroup
				for range capacity {
					wg.Go(func() {
						// For so long that what exceeds a's even part is granted, too.
						if err := a.use(t.Context(), 200*time.Millisecond); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				time.Sleep(10 * time.Second)
				if f := a.Figures(); f.Idle != capacity {
					t.Fatalf("%+v: want all connections idle in a", f)
				}
				began := time.Now()
				if err := b.use(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > 10*time.Millisecond+connectTime {
					t.Errorf("first query after %v, want 10ms and a connect", took)
				}
				synctest.Wait()
				if f := a.Figures(); f.Idle != capacity-1 {
					t.Errorf("%+v: a gave back %d for one", f, capacity-f.Idle)
				}
			})
		})
	}
}

func TestBusyProcessesConvergeToEvenShares(t *testing.T) {
	// 20 is 5 for each of four, and 2 or 3 for each of eight
	for _, processes := range subset.Of(t, 1, []int{4, 8}) {
		t.Run(fmt.Sprint(processes), func(t *testing.T) {
			const capacity = 20
			inFleet(t, capacity, func(t *testing.T, fl *fleet) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				var fleet []*process
				for range processes {
					p := fl.start(allotment.Options{})
					fleet = append(fleet, p)
					p.load(ctx, &wg, 40, 5*time.Millisecond)
					time.Sleep(10 * time.Millisecond)
				}
				time.Sleep(time.Second)
				_, _, connects := fl.witness()
				for i, p := range fleet {
					if f := p.Figures(); f.Owned < capacity/processes || f.Owned > (capacity+processes-1)/processes {
						t.Errorf("process %d owns %d of 20 a second after the last joined: %+v", i, f.Owned, f)
					}
				}
				time.Sleep(3500 * time.Millisecond) // at the end some are done before others
				defer wg.Wait()
				if _, _, after := fl.witness(); after-connects > 5 {
					t.Errorf("%d connects after the shares were even", after-connects)
				}
			})
		})
	}
}

func TestEverythingIsGivenBackAtTheEnd(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		a.load(ctx, &wg, 10, time.Millisecond)
		b.load(ctx, &wg, 10, 3*time.Millisecond)
		wg.Wait()
		for _, p := range []*process{a, b} {
			if err := p.sem.Close(); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if now, _, _ := fl.witness(); now != 0 || fl.held() != 0 {
			t.Errorf("%d backends, %d permits left; %+v %+v", now, fl.held(), a.Figures(), b.Figures())
		}
	})
}

func TestMoreProcessesThanPermitsRotate(t *testing.T) {
	long := subset.Length(2*time.Second, 10*time.Second)
	inFleet(t, 5, func(t *testing.T, fl *fleet) {
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		var wg sync.WaitGroup
		var fleet []*process
		for range 10 {
			p := fl.start(allotment.Options{})
			fleet = append(fleet, p)
			p.load(ctx, &wg, 4, time.Millisecond)
		}
		wg.Wait()
		total := 0
		for i, p := range fleet {
			total += p.ops
			if p.max > 2*time.Second {
				t.Errorf("process %d waited %v", i, p.max)
			}
		}
		for i, p := range fleet {
			if p.ops*len(fleet) < total/2 {
				t.Errorf("process %d made %d of %d operations", i, p.ops, total)
			}
		}
		if total < 4000*int(long/time.Second) {
			t.Errorf("%d operations of 1ms on 5 connections in %v: too much time is spent on reconnects", total, long)
		}
	})
}
