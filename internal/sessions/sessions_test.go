package sessions

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

var (
	ctxb  = context.Background()
	cfgA  = semaphore.Config{Prefix: "p", Name: "a", Capacity: 20}
	errNo = errors.New("no Redis")
)

// redis is where a table opens its semaphores. The opening of each takes as long as the test likes,
// and so does its close.
type redis struct {
	t        *testing.T
	openings chan chan error // one for each opening that has begun; what is sent to it ends it
	closings chan chan error // the same for closes
	open     atomic.Int32
}

type fake struct {
	r      *redis
	closed atomic.Bool
}

func (f *fake) Close() error {
	if f.closed.Swap(true) {
		f.r.t.Error("a semaphore is closed twice")
	}
	end := make(chan error)
	f.r.closings <- end
	err := <-end
	f.r.open.Add(-1)
	return err
}

func newTable(t *testing.T) (*Table, *redis) {
	r := &redis{t: t, openings: make(chan chan error, 9), closings: make(chan chan error, 9)}
	return &Table{open: func(context.Context, string, semaphore.Config) (session, error) {
		end := make(chan error)
		r.openings <- end
		if err := <-end; err != nil {
			return nil, err
		}
		if r.open.Add(1) > 1 {
			t.Error("two sessions are open for one semaphore")
		}
		return &fake{r: r}, nil
	}}, r
}

// finish ends the one opening, or close, that is under way.
func finish(t *testing.T, under chan chan error, err error) {
	t.Helper()
	synctest.Wait()
	if len(under) != 1 {
		t.Fatalf("%d are under way, want 1", len(under))
	}
	(<-under) <- err
	synctest.Wait()
}

type result struct {
	use *Use
	err error
}

// acquires starts an Acquire, and returns once it waits or has ended.
func acquires(table *Table, ctx context.Context, cfg semaphore.Config) <-chan result {
	c := make(chan result, 1)
	go func() {
		use, err := table.Acquire(ctx, "redis://r", cfg)
		c <- result{use, err}
	}()
	synctest.Wait()
	return c
}

func got(t *testing.T, c <-chan result) *Use {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-c:
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.use
	default:
		t.Fatal("it still waits")
		return nil
	}
}

func refused(t *testing.T, c <-chan result, want error) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-c:
		if !errors.Is(r.err, want) {
			t.Fatalf("got %v, want %v", r.err, want)
		}
	default:
		t.Fatal("it still waits")
	}
}

func waits(t *testing.T, c <-chan result) {
	t.Helper()
	synctest.Wait()
	if len(c) > 0 {
		t.Fatalf("it does not wait: %v", (<-c).err)
	}
}

// releases starts a Release, which waits if it closes the semaphore.
func releases(use *Use) <-chan error {
	c := make(chan error, 1)
	go func() { c <- use.Release() }()
	synctest.Wait()
	return c
}

// empty fails unless nothing is left.
func (t *Table) empty(tt *testing.T, r *redis) {
	tt.Helper()
	synctest.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) > 0 || r.open.Load() != 0 || len(r.openings)+len(r.closings) > 0 {
		tt.Errorf("left: %d entries, %d open", len(t.entries), r.open.Load())
	}
}

func run(t *testing.T, name string, test func(t *testing.T, table *Table, r *redis)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			table, r := newTable(t)
			test(t, table, r)
			table.empty(t, r)
		})
	})
}

func TestAcquire(t *testing.T) {
	run(t, "all share one", func(t *testing.T, table *Table, r *redis) {
		a, b := acquires(table, ctxb, cfgA), acquires(table, ctxb, cfgA)
		waits(t, a)
		waits(t, b)
		finish(t, r.openings, nil)
		useA, useB := got(t, a), got(t, b)
		useC := got(t, acquires(table, ctxb, cfgA))
		for _, use := range []*Use{useA, useB} {
			if err := use.Release(); err != nil {
				t.Error(err)
			}
			_ = use.Release() // counts once
		}
		last := releases(useC)
		finish(t, r.closings, errNo)
		if err := <-last; err != errNo {
			t.Errorf("the last Release returns %v, want that of the close", err)
		}
		// and again
		d := acquires(table, ctxb, cfgA)
		finish(t, r.openings, nil)
		releases(got(t, d))
		finish(t, r.closings, nil)
	})
	run(t, "the first gives up", func(t *testing.T, table *Table, r *redis) {
		ctx, cancel := context.WithCancel(ctxb)
		a, b := acquires(table, ctx, cfgA), acquires(table, ctxb, cfgA)
		cancel()
		refused(t, a, context.Canceled)
		waits(t, b)
		finish(t, r.openings, nil)
		releases(got(t, b))
		finish(t, r.closings, nil)
	})
	run(t, "all give up", func(t *testing.T, table *Table, r *redis) {
		ctx, cancel := context.WithTimeout(ctxb, time.Second)
		defer cancel()
		a, b := acquires(table, ctx, cfgA), acquires(table, ctx, cfgA)
		time.Sleep(2 * time.Second)
		refused(t, a, context.DeadlineExceeded)
		refused(t, b, context.DeadlineExceeded)
		finish(t, r.openings, nil)
		// It is being closed. Another caller waits for that, and opens anew.
		c := acquires(table, ctxb, cfgA)
		waits(t, c)
		finish(t, r.closings, nil)
		finish(t, r.openings, nil)
		releases(got(t, c))
		finish(t, r.closings, nil)
	})
	run(t, "one comes after all gave up", func(t *testing.T, table *Table, r *redis) {
		ctx, cancel := context.WithCancel(ctxb)
		a := acquires(table, ctx, cfgA)
		cancel()
		refused(t, a, context.Canceled)
		b := acquires(table, ctxb, cfgA)
		finish(t, r.openings, nil)
		releases(got(t, b))
		finish(t, r.closings, nil)
	})
	run(t, "the opening fails", func(t *testing.T, table *Table, r *redis) {
		a, b := acquires(table, ctxb, cfgA), acquires(table, ctxb, cfgA)
		finish(t, r.openings, errNo)
		refused(t, a, errNo)
		refused(t, b, errNo)
		c := acquires(table, ctxb, cfgA)
		finish(t, r.openings, nil)
		releases(got(t, c))
		finish(t, r.closings, nil)
	})
	run(t, "the opening fails for nobody", func(t *testing.T, table *Table, r *redis) {
		ctx, cancel := context.WithCancel(ctxb)
		a := acquires(table, ctx, cfgA)
		cancel()
		refused(t, a, context.Canceled)
		finish(t, r.openings, errNo)
	})
	run(t, "gives up while it is being closed", func(t *testing.T, table *Table, r *redis) {
		a := acquires(table, ctxb, cfgA)
		finish(t, r.openings, nil)
		releases(got(t, a))
		ctx, cancel := context.WithCancel(ctxb)
		b := acquires(table, ctx, cfgA)
		waits(t, b)
		cancel()
		refused(t, b, context.Canceled)
		finish(t, r.closings, nil)
	})
	run(t, "others are others", func(t *testing.T, table *Table, r *redis) {
		r.open.Store(-2) // two more may be open
		cfgB := cfgA
		cfgB.Name = "b"
		a, b := acquires(table, ctxb, cfgA), acquires(table, ctxb, cfgB)
		for range 2 {
			(<-r.openings) <- nil
		}
		for _, c := range []<-chan result{a, b} {
			releases(got(t, c))
			finish(t, r.closings, nil)
		}
		r.open.Add(2)
	})
}

func TestDisagreement(t *testing.T) {
	run(t, "", func(t *testing.T, table *Table, r *redis) {
		a := acquires(table, ctxb, cfgA)
		other := cfgA
		other.Capacity = 30
		disagrees := func() {
			t.Helper()
			_, err := table.Acquire(ctxb, "redis://r", other)
			if err == nil || !strings.Contains(err.Error(), `"p-a": the passbuddy_capacity of one is `+
				`20, that of the other 30`) {
				t.Errorf("got %v", err)
			}
		}
		disagrees() // while it is being opened
		finish(t, r.openings, nil)
		use := got(t, a)
		disagrees()
		releases(use)
		b := acquires(table, ctxb, other) // waits for the close
		finish(t, r.closings, nil)
		finish(t, r.openings, nil)
		releases(got(t, b))
		finish(t, r.closings, nil)
	})
}

// Any interleaving: one session at a time, and nothing left.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		var opened atomic.Int64
		random := func(i int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(i))) }
		openRandom, mu := random(-1), sync.Mutex{}
		table := &Table{open: func(context.Context, string, semaphore.Config) (session, error) {
			mu.Lock()
			pause, fails := time.Duration(openRandom.IntN(20)), openRandom.IntN(3) == 0
			mu.Unlock()
			time.Sleep(pause)
			if fails {
				return nil, errNo
			}
			opened.Add(1)
			if open.Add(1) > 1 {
				t.Error("two sessions are open for one semaphore")
			}
			return closer(func() error {
				time.Sleep(pause)
				open.Add(-1)
				return nil
			}), nil
		}}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				r := random(i)
				for range 500 {
					ctx, cancel := context.WithTimeout(ctxb, time.Duration(r.IntN(30)))
					use, err := table.Acquire(ctx, "redis://r", cfgA)
					cancel()
					if err != nil {
						continue
					}
					if open.Load() != 1 {
						t.Errorf("a use of %d open sessions", open.Load())
					}
					time.Sleep(time.Duration(r.IntN(20)))
					_ = use.Release()
					time.Sleep(time.Duration(r.IntN(40)))
				}
			})
		}
		wg.Wait()
		time.Sleep(time.Second)
		table.mu.Lock()
		defer table.mu.Unlock()
		if open.Load() != 0 || len(table.entries) > 0 || opened.Load() < 2 {
			t.Errorf("left: %d entries, %d open of %d", len(table.entries), open.Load(), opened.Load())
		}
	})
}

type closer func() error

func (c closer) Close() error { return c() }
