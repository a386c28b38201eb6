package pgxpool_test

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
)

// TestWarmCheckoutSendsNothing counts the scripts on the server, which sees any command beyond
// heartbeats.
func TestWarmCheckoutSendsNothing(t *testing.T) {
	f := newFleet(t, 2)
	pool := f.process(passbuddy.Config{})
	f.works(pool)
	opt, err := redis.ParseURL(f.rd.URL())
	ok(t, err)
	client := redis.NewClient(opt)
	defer client.Close()
	scripts := func() int {
		stats, err := client.Info(ctxb, "commandstats").Result()
		ok(t, err)
		n := 0
		for line := range strings.Lines(stats) {
			if !strings.HasPrefix(line, "cmdstat_evalsha:") &&
				!strings.HasPrefix(line, "cmdstat_eval:") &&
				!strings.HasPrefix(line, "cmdstat_fcall:") {
				continue
			}
			calls, _, _ := strings.Cut(strings.SplitN(line, "calls=", 2)[1], ",")
			c, err := strconv.Atoi(calls)
			ok(t, err)
			n += c
		}
		return n
	}
	before := scripts()
	const checkouts = 20_000
	for range checkouts {
		c, err := pool.Acquire(ctxb)
		ok(t, err)
		c.Release()
	}
	// A heartbeat comes every TTL/3; 20,000 checkouts take milliseconds.
	if n := scripts() - before; n > 3 {
		t.Errorf("%d scripts ran during %d checkouts", n, checkouts)
	}
}

// TestWarmCheckoutAllocatesNothing: a warm checkout allocates no more than the bare pool's, and
// passes on the caller's own context.
func TestWarmCheckoutAllocatesNothing(t *testing.T) {
	f := newFleet(t, 2)
	pool := f.process(passbuddy.Config{})
	f.works(pool)
	// pgx itself allocates a block of 128 Conns now and then; AllocsPerRun rounds down.
	if n := testing.AllocsPerRun(1000, func() {
		c, err := pool.Acquire(ctxb)
		if err != nil {
			t.Fatal(err)
		}
		c.Release()
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// TestContendedReturns covers the race between TraceRelease and the end of Release. A caller that
// TraceRelease wakes may find no idle connection, and then opens one. It must neither exceed the
// cap nor get stuck.
func TestContendedReturns(t *testing.T) {
	const capacity = 2
	f := newFleet(t, capacity)
	sem := f.semaphore()
	peak := f.witness()
	pool := f.pool(sem, passbuddy.Config{})
	ctx, cancel := context.WithTimeout(ctxb, *stress)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	n := 0
	for range 40 {
		wg.Go(func() {
			ops := 0
			for ctx.Err() == nil {
				c, err := pool.Acquire(ctxb)
				if err != nil {
					t.Error(err)
					return
				}
				if got := passpool.Figures(pool); got.Opening+got.Idle+got.Out+
					got.Leaving > got.Owned || got.Owned > capacity {
					t.Errorf("the counts do not add up: %+v", got)
				}
				c.Release()
				ops++
			}
			mu.Lock()
			n += ops
			mu.Unlock()
		})
	}
	wg.Wait()
	if p := peak(); p > capacity {
		t.Errorf("%d backends at the peak, want at most %d", p, capacity)
	}
	t.Logf("%d contended checkouts, %d connections opened", n, pool.Stat().NewConnsCount())
	pool.Close()
	f.settled(sem)
}
