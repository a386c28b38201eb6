package passbuddy

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A connection that is returned after DB.Close, before the callers that Close woke have left the queue,
// is closed, and its permit given back.
func TestCloseLeavesNothingParked(t *testing.T) {
	for _, procs := range []int{1, 0} {
		old := runtime.GOMAXPROCS(0)
		if procs > 0 {
			runtime.GOMAXPROCS(procs)
		}
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				s := &server{t: t}
				fleet := newFleet(t, 2)
				db, cn := wrapped(t, s, full, fleet, Config{})
				out1, err := db.Conn(ctx)
				must(t)(out1, err)
				out2, err := db.Conn(ctx)
				must(t)(out2, err)
				var wg sync.WaitGroup
				for range 200 {
					wg.Go(func() { _ = db.Ping() })
				}
				synctest.Wait()
				_ = db.Close()
				_ = out1.Close()
				_ = out2.Close()
				wg.Wait()
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := s.open.Load(); n != 0 || fleet.left != 1 {
					t.Errorf("a minute after Close %d connections are open, %d permits held: %+v", n, fleet.holds(), cn.a.Figures())
					cn.sweep(0)
					time.Sleep(time.Minute)
				}
			})
		}
		runtime.GOMAXPROCS(old)
	}
}

// A driver that panics in Connect leaves its caller's turn to others.
func TestPanicInConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		fleet := newFleet(t, 2)
		db, cn := wrapped(t, s, full, fleet, Config{AcquireTimeout: time.Second})
		s.connectErr = func() error { panic("hook") }
		for range 3 {
			func() {
				defer func() { recover() }()
				_ = db.Ping()
			}()
		}
		s.connectErr = nil
		time.Sleep(5 * time.Second)
		if err := db.Ping(); err != nil {
			t.Errorf("after panics: %v", err)
		}
		if f := cn.a.Figures(); f.Turns != 0 {
			t.Errorf("%+v", f)
		}
		_ = db.Close()
	})
}

// AcquireTimeout and the close of one pool do not bound a checkout of another, made with the context of
// the first one's Connect.
func TestBoundIsOfOnePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s1, s2 := &server{t: t}, &server{t: t}
		f1, f2 := newFleet(t, 1), newFleet(t, 1)
		db1, cn1 := wrapped(t, s1, full, f1, Config{AcquireTimeout: time.Second})
		db2, _ := wrapped(t, s2, full, f2, Config{AcquireTimeout: time.Minute})
		busy, err := db2.Conn(context.Background())
		must(t)(busy, err)
		go func() { time.Sleep(3 * time.Second); _ = busy.Close() }()
		ctx := cn1.a.Bounded(context.Background(), cn1.closing) // what the driver's Connect sees
		start := time.Now()
		err = db2.PingContext(ctx)
		if err != nil {
			t.Errorf("db2 has a minute: %v after %v", err, time.Since(start))
		}
		time.Sleep(5 * time.Second)
		_ = db1.Close()
		if err := db2.PingContext(ctx); err != nil {
			t.Errorf("db2 is open: %v", err)
		}
		busy, err = db2.Conn(context.Background())
		must(t)(busy, err)
		go func() { time.Sleep(30 * time.Millisecond); _ = busy.Close() }()
		if err := db2.PingContext(ctx); err != nil {
			t.Errorf("db2 is open: %v", err)
		}
		_ = db2.Close()
	})
}
