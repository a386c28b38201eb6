package passbuddy

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// A connection is returned after DB.Close, before the woken callers have left the queue. PassBuddy
// closes it and gives its permit back.
func TestCloseLeavesNothingParked(t *testing.T) {
	for _, procs := range []int{1, 0} {
		old := runtime.GOMAXPROCS(0)
		if procs > 0 {
			runtime.GOMAXPROCS(procs)
		}
		for range subset.Length(5, 20) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, 2, full, Config{})
				out1, out2 := b.conn(t), b.conn(t)
				var wg sync.WaitGroup
				for range 200 {
					wg.Go(func() { _ = b.db.Ping() })
				}
				synctest.Wait()
				_ = b.db.Close()
				_ = out1.Close()
				_ = out2.Close()
				wg.Wait()
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := b.server.open.Load(); n != 0 || b.fleet.left != 1 {
					t.Errorf("a minute after Close %d connections are open, %d permits held: %+v",
						n, b.fleet.holds(), b.cn.a.Figures())
					b.cn.sweep(0)
					time.Sleep(time.Minute)
				}
			})
		}
		runtime.GOMAXPROCS(old)
	}
}

// If a driver panics in Connect, its caller's turn passes to others.
func TestPanicInConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{AcquireTimeout: time.Second})
		b.server.connectErr = func() error { panic("hook") }
		for range 3 {
			func() {
				defer func() { recover() }()
				_ = b.db.Ping()
			}()
		}
		b.server.connectErr = nil
		time.Sleep(5 * time.Second)
		if err := b.db.Ping(); err != nil {
			t.Errorf("Ping after panics: %v", err)
		}
		if f := b.cn.a.Figures(); f.Turns != 0 {
			t.Errorf("the panics leave turns behind: %+v", f)
		}
		_ = b.db.Close()
	})
}

// AcquireTimeout and the close of one pool do not bound a checkout of another pool that uses the
// context of the first one's Connect.
func TestBoundIsOfOnePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b1 := newBench(t, 1, full, Config{AcquireTimeout: time.Second})
		b2 := newBench(t, 1, full, Config{AcquireTimeout: time.Minute})
		busy := b2.conn(t)
		go func() { time.Sleep(3 * time.Second); _ = busy.Close() }()
		// The context that the driver's Connect gets.
		ctx := b1.cn.a.Bounded(context.Background(), b1.cn.closing)
		start := time.Now()
		if err := b2.db.PingContext(ctx); err != nil {
			t.Errorf("the second DB's timeout is a minute: %v after %v", err, time.Since(start))
		}
		time.Sleep(5 * time.Second)
		_ = b1.db.Close()
		if err := b2.db.PingContext(ctx); err != nil {
			t.Errorf("the second DB is open: %v", err)
		}
		busy = b2.conn(t)
		go func() { time.Sleep(30 * time.Millisecond); _ = busy.Close() }()
		if err := b2.db.PingContext(ctx); err != nil {
			t.Errorf("the second DB is open: %v", err)
		}
		_ = b2.db.Close()
	})
}
