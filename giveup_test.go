package passbuddy

import (
	"context"
	"database/sql/driver"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// A quitter is the context of a caller that gives up when quits is closed. Its first Err after that
// waits until goes is closed: so the caller is on its way out of the queue meanwhile.
type quitter struct {
	context.Context
	quits, leaves, goes chan struct{}
	once                *sync.Once
}

func newQuitter() quitter {
	return quitter{context.Background(), make(chan struct{}), make(chan struct{}), make(chan struct{}),
		new(sync.Once)}
}

func (q quitter) Done() <-chan struct{} { return q.quits }

func (q quitter) Err() error {
	select {
	case <-q.quits:
		q.once.Do(func() { close(q.leaves); <-q.goes })
		return context.Canceled
	default:
		return nil
	}
}

// A caller gives up. On its way out it is served with an idle connection, and something happens to
// that. The connection goes back where it was, or ends, and is not counted twice.
func TestServedWhileGivingUp(t *testing.T) {
	leave := func(b *bench) (ph *physical) { // as the connection's socket does when it is closed
		ph = b.cn.a.AllAttached()[0].(*physical)
		ph.broken.Store(true)
		ph.slot.Leave()
		return ph
	}
	for name, test := range map[string]struct {
		meanwhile func(t *testing.T, b *bench)
		open      int32 // connections that stay open
	}{
		"nothing happens":       {func(*testing.T, *bench) {}, 1},
		"its lease is lost":     {func(t *testing.T, b *bench) { b.fleet.lose(t) }, 0},
		"its wrapper is closed": {func(_ *testing.T, b *bench) { b.db.SetMaxIdleConns(-1) }, 0},
		"the DB is closed":      {func(_ *testing.T, b *bench) { go b.db.Close() }, 0},
		"the engine is closed":  {func(_ *testing.T, b *bench) { b.cn.a.Closed() }, 0},
		"it leaves":             {func(_ *testing.T, b *bench) { leave(b) }, 0},
		"it is gone":            {func(_ *testing.T, b *bench) { leave(b).slot.Gone() }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
				if err := b.db.Ping(); err != nil {
					t.Fatal(err)
				}
				if _, err := b.cn.a.Enter(t.Context(), false); err != nil { // the only turn
					t.Fatal(err)
				}
				ctx, ended := newQuitter(), make(chan error, 1)
				go func() {
					_, err := b.cn.acquire(ctx)
					ended <- err
				}()
				synctest.Wait()
				close(ctx.quits)
				<-ctx.leaves
				b.cn.a.Exit()
				synctest.Wait()
				if got := b.cn.a.Figures(); got.Out != 1 {
					t.Fatalf("bug in the test: the caller is not served: %+v", got)
				}
				test.meanwhile(t, b)
				synctest.Wait()
				close(ctx.goes)
				if err := <-ended; err == nil {
					t.Error("the caller has a connection")
				}
				time.Sleep(time.Minute)
				if n := b.server.open.Load(); n != test.open {
					t.Errorf("%d connections are open, want %d", n, test.open)
				}
				got := b.cn.a.Figures()
				if got.Idle != int(test.open) || got.Owned != int(test.open) || got.Turns != 0 || got.Out != 0 {
					t.Errorf("%d connections are open, and counted are %+v", test.open, got)
				}
			})
		})
	}
}

// TestTooOldWhileLent: a connection is lent while it reaches SetConnMaxLifetime. It has no return
// that would find out.
func TestTooOldWhileLent(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		const limit = time.Minute
		if err := b.db.Ping(); err != nil {
			t.Fatal(err)
		}
		b.cn.learn(limit) // as from a wrapper that was closed for its age
		b.cn.moves(b.cn.a.AllAttached()[0].(*physical))
		time.Sleep(limit - time.Second)
		held, err := b.cn.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		b.cn.giveBack(held)
		time.Sleep(2 * parkTimeout)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open past their lifetime, want none", n)
		}
	})
}

// TestIdleWrapperTouchesNothing: another caller has claimed the connection of a wrapper. The wrapper
// is asked whether it is valid, as database/sql does for a caller of a returned one that has given
// up.
func TestIdleWrapperTouchesNothing(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		w, err := b.cn.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !w.(driver.Validator).IsValid() {
			t.Fatal("bug in the test: the wrapper does not keep its connection")
		}
		held, err := b.cn.acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.server.calls()
		valid := w.(driver.Validator).IsValid()
		if calls := b.server.calls(); len(calls) > 0 {
			t.Errorf("the wrapper calls %v on a connection that another has", calls)
		}
		if valid {
			t.Error("the wrapper takes itself for valid")
		}
		_ = w.Close()
		b.cn.giveBack(held)
	})
}

// TestUncountedEndsAtItsReturn: a connection was kept without a permit while Redis was away. Redis is
// back, and others have the capacity.
func TestUncountedEndsAtItsReturn(t *testing.T) {
	bubble(t, 1, full, Config{KeepOnLoss: true}, func(t *testing.T, b *bench) {
		c := b.conn(t)
		redis := func(err error, capacity int) {
			b.fleet.mu.Lock()
			defer b.fleet.mu.Unlock()
			b.fleet.err, b.fleet.capacity = err, capacity
		}
		redis(semaphore.ErrUnavailable, 1)
		b.fleet.lose(t)
		redis(nil, 0)
		b.cn.a.Changed()
		time.Sleep(3 * time.Second)
		_ = c.Close()
		time.Sleep(time.Second)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections without a permit lie idle, and Redis is back", n)
		}
	})
}
