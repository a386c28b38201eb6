package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// checkoutUses are the ways to use a connection. Each works for a millisecond, see busyServer.
var checkoutUses = map[string]func(db *sql.DB, st *sql.Stmt) error{
	"exec": func(db *sql.DB, _ *sql.Stmt) error { _, err := db.Exec("x"); return err },
	"conn": func(db *sql.DB, _ *sql.Stmt) error {
		c, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(context.Background(), "x")
		return err
	},
	"transaction": func(db *sql.DB, _ *sql.Stmt) error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		st, err := tx.Prepare("x")
		if err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if _, err := st.Exec(); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		_, err = tx.Exec("x")
		return errors.Join(err, tx.Commit())
	},
	"raw": func(db *sql.DB, _ *sql.Stmt) error {
		c, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Raw(func(dc any) error {
			_, err := dc.(RawConn).Raw().(*fullConn).ExecContext(context.Background(), "x", nil)
			return err
		})
	},
	"statement": func(_ *sql.DB, st *sql.Stmt) error { _, err := st.Exec(); return err },
}

func busy(ctx context.Context, _ string) error {
	time.Sleep(time.Millisecond)
	return nil
}

// TestOpenFollowsPermits: many callers on few permits open as many connections as there are permits.
func TestOpenFollowsPermits(t *testing.T) {
	for name, use := range checkoutUses {
		for _, maxOpen := range []int{0, 10} {
			t.Run(fmt.Sprintf("%s/max %d", name, maxOpen), func(t *testing.T) {
				bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
					b.db.SetMaxIdleConns(20)
					b.db.SetMaxOpenConns(maxOpen)
					b.server.onExec = busy
					b.server.onStmtExec = func() { time.Sleep(time.Millisecond) }
					st, err := b.db.Prepare("x")
					if err != nil {
						t.Fatal(err)
					}
					var wg sync.WaitGroup
					for range 20 {
						wg.Go(func() {
							for range 50 {
								if err := use(b.db, st); err != nil {
									t.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					most := int32(3 + 1) // the statement keeps one
					if strings.HasPrefix(name, "statement") {
						most = 2 * 3 // each that was returned while nobody waited keeps its own
					}
					if n := b.server.peak.Load(); n > most {
						t.Errorf("%d connections were open, of 3 permits", n)
					}
					if n := b.server.dials.Load(); n > 2*most {
						t.Errorf("dialled %d times", n)
					}
					_ = st.Close()
				})
			})
		}
	}
}

// TestIdleStaysWarm: at rest nothing is closed that SetMaxIdleConns allows.
func TestIdleStaysWarm(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 4)
		time.Sleep(time.Hour)
		if n := b.server.open.Load(); n != 4 {
			t.Errorf("%d connections are open", n)
		}
		b.atOnce(t, 4)
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times", n)
		}
		time.Sleep(100 * time.Millisecond) // permits are kept for a moment
		if n := b.fleet.holds(); n != 0 {
			t.Errorf("%d permits are held", n)
		}
	})
}

// atOnce checks out n connections together and returns them.
func (b *bench) atOnce(t *testing.T, n int) {
	t.Helper()
	var out []*sql.Conn
	for range n {
		out = append(out, b.conn(t))
	}
	for _, c := range out {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	synctest.Wait()
}

// TestSurplusEnds: the process has fewer permits than it had, and callers wait. The connections that the
// permits do not suffice for are closed.
func TestSurplusEnds(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.server.onExec = busy
		b.atOnce(t, 4)
		b.fleet.take(3)
		stop := time.Now().Add(3 * parkedMost)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for time.Now().Before(stop) {
					if _, err := b.db.Exec("x"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		time.Sleep(2*parkedMost + 10*time.Millisecond)
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open on one permit", n)
		}
		wg.Wait()
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times", n)
		}
		b.fleet.giveBack(3)
	})
}

// TestMaxIdleConns: a wrapper that database/sql closes at rest takes a connection with it. If callers
// wait, the connection goes to them.
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
		for range 15 { // one goes on
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
			t.Errorf("%d connections are open after nothing happened for 25s", n)
		}
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times", n)
		}
	})
}

// TestConnMaxLifetime: it is the connection that must not grow older, not only its wrapper.
func TestConnMaxLifetime(t *testing.T) {
	const limit, tolerance = 10 * time.Second, time.Second
	// With fewer idle wrappers than callers, wrappers are closed before they reach the limit, and nothing
	// shows it.
	for callers, maxIdles := range map[int][]int{1: {1, 20}, 12: {12, 20}} {
		for _, maxIdle := range maxIdles {
			t.Run(fmt.Sprintf("%d callers, %d idle", callers, maxIdle), func(t *testing.T) {
				bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
					b.db.SetMaxIdleConns(maxIdle)
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
					b.server.onExec = func(context.Context, string) error { time.Sleep(20 * time.Millisecond); return nil }
					stop := time.Now().Add(5*limit + limit/2)
					var wg sync.WaitGroup
					for i := range callers {
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
					n, least := b.server.dials.Load(), int32(6*min(callers, 3))
					if n < least || n > least+least/2 {
						t.Errorf("dialled %d times", n)
					}
				})
			})
		}
	}
}

// TestConnMaxLifetimeRaised: the limit is forgotten when a wrapper is used that is older.
func TestConnMaxLifetimeRaised(t *testing.T) {
	bubble(t, 1, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		use := func(d time.Duration) (dialled int32) {
			before := b.server.dials.Load()
			for stop := time.Now().Add(d); time.Now().Before(stop); time.Sleep(100 * time.Millisecond) {
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

// TestClosedForAge holds closedForAge to the database/sql of this Go.
func TestClosedForAge(t *testing.T) {
	if discards, tooMany := putConnLines(); discards == 0 || tooMany == 0 || discards == tooMany {
		t.Fatalf("putConn's lines are %d and %d", discards, tooMany)
	}
	for name, c := range map[string]struct {
		use  func(b *bench)
		aged bool
	}{
		"too many":           {func(b *bench) { b.db.SetMaxIdleConns(0); b.ping() }, false},
		"made too many":      {func(b *bench) { b.ping(); b.db.SetMaxIdleConns(0) }, false},
		"the DB":             {func(b *bench) { b.ping(); _ = b.db.Close() }, false},
		"returned too old":   {func(b *bench) { b.pingSlowly() }, true},
		"too old to be used": {func(b *bench) { b.ping(); time.Sleep(50 * time.Millisecond); b.ping() }, true},
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

// TestDeadIdleConnections: a connection that the driver gives up at the checkout is closed, and the next
// is tried.
func TestDeadIdleConnections(t *testing.T) {
	bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 3)
		dead := 2
		b.server.onReset = func(*fakeConn) error {
			if dead--; dead >= 0 {
				return driver.ErrBadConn
			}
			return nil
		}
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if open, dials := b.server.open.Load(), b.server.dials.Load(); open != 1 || dials != 3 {
			t.Errorf("%d connections are open, dialled %d times", open, dials)
		}
	})
}

// TestCancelledResetCostsOneConnection: a driver that fails because the caller has gone would fail with
// all the others too.
func TestCancelledResetCostsOneConnection(t *testing.T) {
	bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 3)
		ctx, cancel := context.WithCancel(context.Background())
		b.server.onReset = func(*fakeConn) error {
			cancel()
			return driver.ErrBadConn
		}
		if err := b.db.PingContext(ctx); !errors.Is(err, context.Canceled) || errors.Is(err, driver.ErrBadConn) {
			t.Error(err)
		}
		synctest.Wait()
		if n := b.server.open.Load(); n != 2 {
			t.Errorf("%d connections are open", n)
		}
	})
}

// TestDialErrorsReachTheCaller: an empty wrapper has to dial, and that fails.
func TestDialErrorsReachTheCaller(t *testing.T) {
	refused := errors.New("refused")
	uses := map[string]func(db *sql.DB, st *sql.Stmt) error{
		"exec": func(db *sql.DB, _ *sql.Stmt) error { _, err := db.Exec("x"); return err },
		"ping": func(db *sql.DB, _ *sql.Stmt) error { return db.Ping() },
		"begin": func(db *sql.DB, _ *sql.Stmt) error {
			tx, err := db.Begin()
			if err == nil {
				err = tx.Commit()
			}
			return err
		},
		"prepare": func(db *sql.DB, _ *sql.Stmt) error {
			own, err := db.Prepare("x")
			if err == nil {
				err = own.Close()
			}
			return err
		},
		"conn": func(db *sql.DB, _ *sql.Stmt) error {
			c, err := db.Conn(context.Background())
			if err == nil {
				err = c.Close()
			}
			return err
		},
		"statement": func(_ *sql.DB, st *sql.Stmt) error { _, err := st.Exec(); return err },
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
				st, err := b.db.Prepare("x")
				if err != nil {
					t.Fatal(err)
				}
				b.atOnce(t, 3)
				b.server.onReset = func(*fakeConn) error { return driver.ErrBadConn }
				b.server.connectErr = func() error { return fmt.Errorf("%w: %w", refused, driver.ErrBadConn) }
				err = use(b.db, st)
				if err == nil || errors.Is(err, driver.ErrBadConn) {
					t.Errorf("%v", err)
				}
				b.server.onReset, b.server.connectErr = nil, nil
				if err := use(b.db, st); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				_ = st.Close()
			})
		})
	}
}

// TestRefusedConnUnderMaxOpenConns: database/sql's last try gets a returned wrapper, where no error of
// Connect can reach the caller.
func TestRefusedConnUnderMaxOpenConns(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout, AcquireTimeout: time.Second}, func(t *testing.T, b *bench) {
		b.db.SetMaxOpenConns(2)
		b.atOnce(t, 2)
		b.fleet.take(2)
		c, err := b.db.Conn(context.Background())
		if err == nil {
			err = c.PingContext(context.Background())
			_ = c.Close()
		}
		if !errors.Is(err, semaphore.ErrCapacity) || errors.Is(err, driver.ErrBadConn) {
			t.Error(err)
		}
		b.fleet.giveBack(2)
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
	})
}

// TestRefusalIsToldOnce: the third try of a checkout is its last.
func TestRefusalIsToldOnce(t *testing.T) {
	var r refusals
	ctx, refused := context.Background(), errors.New("refused")
	r.add(ctx, refused)
	for i, want := range []bool{false, true} {
		if err, last := r.again(ctx); err != refused || last != want {
			t.Errorf("retry %d: %v, last %v", i+1, err, last)
		}
	}
	if err, _ := r.again(ctx); err != nil {
		t.Errorf("after the last: %v", err)
	}
}

// TestLateFence: the lease of a checkout is lost, and the connection is out again when the news comes.
func TestLateFence(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		first := b.conn(t)
		var before *physical
		must(t)(nil, first.Raw(func(dc any) error { before = dc.(wrapper).base().ph; return nil }))
		unit := before.unit
		_ = first.Close()
		second := b.conn(t)
		must(t)(nil, second.Raw(func(dc any) error {
			if dc.(wrapper).base().ph != before {
				t.Error("another connection")
			}
			return nil
		}))
		b.cn.Fence(unit)
		if err := second.PingContext(context.Background()); err != nil {
			t.Errorf("it suffers for a permit that it does not use: %v", err)
		}
		_ = second.Close()
	})
}

// TestFenceBeforeReturn: a connection whose lease was lost while it was out does not reach the list.
func TestFenceBeforeReturn(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		c := b.conn(t)
		b.fleet.lose(t)
		synctest.Wait()
		_ = c.Close()
		time.Sleep(time.Second)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
	})
}

// TestPinnedStaysWithItsWrapper: nobody waits, so the statement keeps its connection, and is not
// prepared again.
func TestPinnedStaysWithItsWrapper(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		st, err := b.db.Prepare("x")
		if err != nil {
			t.Fatal(err)
		}
		b.server.calls()
		for range 3 {
			if _, err := st.Exec(); err != nil {
				t.Fatal(err)
			}
		}
		for _, call := range b.server.calls() {
			if call == "PrepareContext" {
				t.Error("prepared again")
			}
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times", n)
		}
		_ = st.Close()
	})
}

// TestCloseEndsIdleConnections: DB.Close waits for them, and what is returned later is not kept.
func TestCloseEndsIdleConnections(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 4)
		out := b.conn(t)
		if err := b.db.Close(); err != nil {
			t.Error(err)
		}
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open after Close", n)
		}
		if err := out.PingContext(context.Background()); err != nil {
			t.Error(err)
		}
		_ = out.Close()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open in the end", n)
		}
	})
}

// TestRandomCheckouts uses a DB in every way, while its limits change, connections die, dials fail, and
// leases are lost. No connection is used by two at once, and in the end all is given back (see bubble).
func TestRandomCheckouts(t *testing.T) {
	for kindName, kind := range kinds {
		for _, maxOpen := range []int{0, 6} {
			t.Run(fmt.Sprintf("%s/max %d", kindName, maxOpen), func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				bubble(t, 3, kind, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
					b.db.SetMaxOpenConns(maxOpen)
					st, err := b.db.Prepare("x")
					if err != nil {
						t.Fatal(err)
					}
					var mu sync.Mutex
					var statements []*sql.Stmt
					chance := rand.New(rand.NewPCG(seed, 100))
					oneIn := func(n int) bool { mu.Lock(); defer mu.Unlock(); return chance.IntN(n) == 0 }
					failed := errors.New("dial failed")
					b.server.connectErr = func() error {
						if oneIn(10) {
							return failed
						}
						return nil
					}
					b.server.onReset = func(*fakeConn) error {
						if oneIn(20) {
							return driver.ErrBadConn
						}
						return nil
					}
					stop := make(chan struct{})
					var faults, wg sync.WaitGroup
					faults.Go(func() {
						r := rand.New(rand.NewPCG(seed, 101))
						losses := 3
						for {
							select {
							case <-stop:
								return
							case <-time.After(time.Duration(r.IntN(60)) * time.Millisecond):
							}
							switch r.IntN(6) {
							case 0:
								b.db.SetMaxIdleConns(r.IntN(6))
							case 1:
								b.db.SetConnMaxLifetime(time.Duration(r.IntN(3)) * 50 * time.Millisecond)
							case 2:
								b.db.SetConnMaxIdleTime(time.Duration(r.IntN(3)) * 50 * time.Millisecond)
							case 3:
								b.fleet.take(1)
								time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
								b.fleet.giveBack(1)
							case 4:
								_ = b.db.Stats()
							case 5:
								if losses--; losses >= 0 { // the fake fleet does not get them back
									b.fleet.lose(t)
								}
							}
						}
					})
					for i := range 8 {
						wg.Go(func() {
							own := randomCheckouts(t, b.db, st, rand.New(rand.NewPCG(seed, uint64(i))), failed)
							mu.Lock()
							statements = append(statements, own...)
							mu.Unlock()
						})
					}
					wg.Wait()
					close(stop)
					faults.Wait()
					for _, own := range append(statements, st) {
						if err := own.Close(); err != nil {
							t.Error(err)
						}
					}
				})
			})
		}
	}
}

// randomCheckouts returns the statements that it leaves open.
func randomCheckouts(t *testing.T, db *sql.DB, st *sql.Stmt, r *rand.Rand, failed error) (statements []*sql.Stmt) {
	check := func(err error) {
		for _, known := range []error{context.DeadlineExceeded, sql.ErrTxDone, sql.ErrConnDone, failed, semaphore.ErrLost} {
			if errors.Is(err, known) {
				return
			}
		}
		// A lease that is lost while its connection is out ends that with ErrBadConn, as a broken connection does.
		if err != nil && !errors.Is(err, driver.ErrBadConn) {
			t.Error(err)
		}
	}
	for range 200 {
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if r.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(20))*time.Millisecond)
		}
		pause := func() { time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond) }
		switch r.IntN(8) {
		case 0:
			_, err := db.ExecContext(ctx, "x", r.IntN(9))
			check(err)
		case 1:
			rows, err := db.QueryContext(ctx, "x")
			check(err)
			if err == nil {
				pause()
				_ = rows.Close()
			}
		case 2:
			_, err := st.ExecContext(ctx)
			check(err)
		case 3:
			tx, err := db.BeginTx(ctx, nil)
			check(err)
			if err == nil {
				own, err := tx.PrepareContext(ctx, "x")
				check(err)
				if err == nil {
					_, err = own.ExecContext(ctx)
					check(err)
				}
				pause()
				if r.IntN(2) == 0 {
					check(tx.Rollback())
				} else {
					check(tx.Commit())
				}
			}
		case 4:
			c, err := db.Conn(ctx)
			check(err)
			if err == nil {
				pause()
				_, err := c.ExecContext(ctx, "x")
				check(err)
				_ = c.Close()
			}
		case 5:
			c, err := db.Conn(ctx)
			check(err)
			if err == nil {
				discard(c)
			}
		case 6:
			own, err := db.PrepareContext(ctx, "x")
			check(err)
			if err == nil {
				_, err = own.ExecContext(ctx)
				check(err)
				// Closing it waits for the lock of each connection that it was prepared on. ResetSession
				// holds that while it waits for a permit, and fake time stops while a lock is waited for.
				statements = append(statements, own)
			}
		case 7:
			c, err := db.Conn(ctx)
			check(err)
			if err == nil {
				check(c.Raw(func(dc any) error { _ = dc.(RawConn).Raw(); return nil }))
				own, err := c.PrepareContext(ctx, "x")
				check(err)
				if err == nil {
					_, err = own.ExecContext(ctx)
					check(err)
					_ = own.Close()
				}
				_ = c.Close()
			}
		}
		cancel()
		pause()
	}
	return statements
}
