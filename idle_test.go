package passbuddy

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
)

// TestMaxIdleConns: a wrapper that database/sql closes at rest takes a connection with it. If a
// caller waits, the connection goes to it.
func TestMaxIdleConns(t *testing.T) {
	for _, maxIdle := range []int{0, 2} {
		t.Run(fmt.Sprint(maxIdle), func(t *testing.T) {
			bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
				b.db.SetMaxIdleConns(maxIdle)
				b.atOnce(t, 4)
				if n := b.server.open.Load(); int(n) != maxIdle {
					t.Errorf("%d connections are open", n)
				}
				b.db.SetMaxIdleConns(4)
				b.atOnce(t, 4)
				b.db.SetMaxIdleConns(1)
				synctest.Wait()
				if n := b.server.open.Load(); n != 1 {
					t.Errorf("%d connections are open after SetMaxIdleConns(1)", n)
				}
			})
		})
	}
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.db.SetMaxIdleConns(1)
		b.server.onExec = busy
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 300 {
					if _, err := b.db.Exec("x"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := b.server.dials.Load(); n > 4 {
			t.Errorf("dialled %d times for 2400 operations", n)
		}
	})
}

func TestConnMaxIdleTime(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.db.SetConnMaxIdleTime(10 * time.Second)
		b.atOnce(t, 4)
		for range 15 { // one caller goes on
			time.Sleep(time.Second)
			if err := b.db.Ping(); err != nil {
				t.Fatal(err)
			}
		}
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		time.Sleep(25 * time.Second)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open after 25s without any use", n)
		}
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times", n)
		}
	})
}

// TestConnMaxLifetime: the connection, not only its wrapper, must not grow older than the limit.
func TestConnMaxLifetime(t *testing.T) {
	const limit, tolerance = 10 * time.Second, time.Second
	// With fewer idle wrappers than callers, database/sql closes wrappers before they reach the
	// limit, so no wrapper shows the limit.
	type crowd struct{ callers, maxIdle int }
	type use struct {
		crowd
		scope Scope
	}
	var all []use
	for _, c := range []crowd{{1, 1}, {1, 20}, {12, 12}, {12, 20}} {
		for _, scope := range scopes {
			all = append(all, use{c, scope})
		}
	}
	for _, c := range subset.Of(t, 4, all) {
		t.Run(fmt.Sprintf("%v, %d callers, %d idle", c.scope, c.callers, c.maxIdle),
			func(t *testing.T) {
				bubble(t, 3, full, Config{Scope: c.scope}, func(t *testing.T, b *bench) {
					b.db.SetMaxIdleConns(c.maxIdle)
					b.db.SetConnMaxLifetime(limit)
					var mu sync.Mutex
					opened := make(map[int32]time.Time) // by number of the connection
					b.server.onReset = func(c *fakeConn) error {
						mu.Lock()
						defer mu.Unlock()
						if opened[c.n].IsZero() {
							opened[c.n] = time.Now()
						}
						if age := time.Since(opened[c.n]); age > limit+tolerance {
							t.Errorf("a connection is %v old", age)
						}
						return nil
					}
					b.server.onExec = func(context.Context, string) error {
						time.Sleep(20 * time.Millisecond)
						return nil
					}
					stop := time.Now().Add(5*limit + limit/2)
					var wg sync.WaitGroup
					for i := range c.callers {
						wg.Go(func() {
							for time.Now().Before(stop) {
								if _, err := b.db.Exec("x"); err != nil {
									t.Error(err)
									return
								}
								time.Sleep(time.Duration(i) * 3 * time.Millisecond)
							}
						})
					}
					wg.Wait()
					n, least := b.server.dials.Load(), int32(6*min(c.callers, 3))
					if n < least || n > least+least/2 {
						t.Errorf("dialled %d times", n)
					}
				})
			})
	}
}

// TestConnMaxLifetimeRaised: PassBuddy forgets the limit when an older wrapper is used.
func TestConnMaxLifetimeRaised(t *testing.T) {
	bubble(t, 1, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		use := func(d time.Duration) (dialled int32) {
			before := b.server.dials.Load()
			for stop := time.Now().Add(d); time.Now().Before(stop); time.Sleep(
				100 * time.Millisecond) {
				if err := b.db.Ping(); err != nil {
					t.Fatal(err)
				}
			}
			return b.server.dials.Load() - before
		}
		b.db.SetConnMaxLifetime(10 * time.Second)
		if n := use(35 * time.Second); n != 4 {
			t.Errorf("dialled %d times, want 4", n)
		}
		b.db.SetConnMaxLifetime(0)
		if n := use(10 * time.Minute); n > 2 {
			t.Errorf("without a limit: dialled %d times", n)
		}
	})
}

// TestClosedForAge checks closedForAge against the database/sql of this Go.
func TestClosedForAge(t *testing.T) {
	if discards, tooMany := putConnLines(); discards == 0 || tooMany == 0 || discards == tooMany {
		t.Fatalf("putConn's lines are %d and %d", discards, tooMany)
	}
	for name, c := range map[string]struct {
		use  func(b *bench)
		aged bool
	}{
		"too many":         {func(b *bench) { b.db.SetMaxIdleConns(0); b.ping() }, false},
		"made too many":    {func(b *bench) { b.ping(); b.db.SetMaxIdleConns(0) }, false},
		"the DB":           {func(b *bench) { b.ping(); _ = b.db.Close() }, false},
		"returned too old": {func(b *bench) { b.pingSlowly() }, true},
		"too old to be used": {func(b *bench) {
			b.ping()
			time.Sleep(50 * time.Millisecond)
			b.ping()
		}, true},
		"idle for too long": {func(b *bench) {
			b.db.SetConnMaxLifetime(0)
			b.db.SetConnMaxIdleTime(time.Second)
			b.ping()
			time.Sleep(5 * time.Second)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
				b.db.SetConnMaxLifetime(20 * time.Millisecond)
				c.use(b)
				b.cn.idle.mu.Lock()
				maxAge := b.cn.idle.maxAge
				b.cn.idle.mu.Unlock()
				if aged := maxAge > 0; aged != c.aged {
					t.Errorf("the limit is taken for %v", maxAge)
				}
			})
		})
	}
}

func (b *bench) ping() { _ = b.db.Ping() }

func (b *bench) pingSlowly() {
	c, err := b.db.Conn(context.Background())
	if err == nil {
		time.Sleep(50 * time.Millisecond)
		_ = c.Close()
	}
}

// TestConnMaxLifetimeOfIdle: an idle connection that was handed over does not outlive the limit.
func TestConnMaxLifetimeOfIdle(t *testing.T) {
	const limit = 10 * time.Second
	bubble(t, 3, full, Config{}, func(t *testing.T, b *bench) {
		b.db.SetMaxIdleConns(20)
		b.db.SetConnMaxLifetime(limit)
		b.crowd(t, 12, 15*time.Second) // the second generation is 5 s old
		time.Sleep(limit - 5*time.Second + 100*time.Millisecond)
		synctest.Wait()
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections outlive the limit", n)
		}
	})
}

// TestConnMaxLifetimeRaisedInACrowd is TestConnMaxLifetimeRaised while connections are handed over
// all the time.
func TestConnMaxLifetimeRaisedInACrowd(t *testing.T) {
	bubble(t, 3, full, Config{}, func(t *testing.T, b *bench) {
		b.db.SetMaxIdleConns(20)
		b.db.SetConnMaxLifetime(10 * time.Second)
		b.crowd(t, 12, 25*time.Second)
		if n := b.server.dials.Load(); n != 9 {
			t.Errorf("dialled %d times, want 9", n)
		}
		b.db.SetConnMaxLifetime(0)
		b.crowd(t, 12, 30*time.Second)
		before := b.server.dials.Load()
		b.crowd(t, 12, subset.Length(time.Minute, 10*time.Minute))
		if n := b.server.dials.Load(); n != before {
			t.Errorf("without a limit: dialled %d times", n-before)
		}
	})
}

// crowd lets the given number of callers use the DB for the given time.
func (b *bench) crowd(t *testing.T, callers int, d time.Duration) {
	t.Helper()
	b.server.onExec = func(context.Context, string) error {
		time.Sleep(20 * time.Millisecond)
		return nil
	}
	stop := time.Now().Add(d)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for time.Now().Before(stop) {
				if _, err := b.db.Exec("x"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
