package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// bubble runs f with a DB over a fake server under a fake clock, and checks at the end that
// everything is given back.
func bubble(t *testing.T, capacity int, kind func(fakeConn) driver.Conn, cfg Config,
	f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, capacity, kind, cfg)
		f(t, b)
		_ = b.db.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.fleet.holds(); n != 0 {
			t.Errorf("%d permits are held at the end, want none: %+v", n, b.cn.a.Figures())
		}
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open at the end, want none", n)
		}
		if b.cn.joined.Load() && b.fleet.left != 1 {
			t.Errorf("the pool left the engine %d times, want once", b.fleet.left)
		}
		if got := b.cn.a.Figures(); got.Turns != 0 || got.Owned != 0 || got.Waiting != 0 {
			t.Errorf("left over: %+v", got)
		}
	})
}

type bench struct {
	server *server
	fleet  *fakeFleet
	db     *sql.DB
	cn     *connector
}

func newBench(t *testing.T, capacity int, kind func(fakeConn) driver.Conn, cfg Config) *bench {
	t.Helper()
	b := &bench{server: &server{t: t}, fleet: newFleet(t, capacity)}
	b.db, b.cn = wrapped(t, b.server, kind, b.fleet, cfg)
	return b
}

func (b *bench) conn(t *testing.T) *sql.Conn {
	t.Helper()
	c, err := b.db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNoSelfStarvation(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				b.db.SetMaxIdleConns(2) // PerCheckout has two connections, and uses one at a time
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						for range subset.Length(1000, 5000) {
							if _, err := b.db.Exec("x"); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				if n := b.server.dials.Load(); n > 2 {
					t.Errorf("dialled %d times, want at most 2", n)
				}
				if n := b.server.mostRuns.Load(); n != 1 {
					t.Errorf("%d operations at once, want 1", n)
				}
			})
		})
	}
}

func TestHandOverIsFirstComeFirstServed(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		first := b.conn(t)
		var mu sync.Mutex
		var order []int
		for i := range 8 {
			go func() {
				c := b.conn(t)
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				_ = c.Close()
			}()
			synctest.Wait() // the caller is in the queue
		}
		_ = first.Close()
		synctest.Wait()
		if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5, 6, 7}) {
			t.Errorf("served in the order %v", order)
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times, want 1", n)
		}
	})
}

// TestParking: with database/sql's default of two idle connections, a busy DB hands its connections
// from caller to caller and does not reconnect.
func TestParking(t *testing.T) {
	bubble(t, 5, full, Config{}, func(t *testing.T, b *bench) {
		b.db.SetMaxIdleConns(2)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 100 {
					if _, err := b.db.Exec("x"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		if n := b.server.dials.Load(); n > 15 {
			t.Errorf("dialled %d times for 5000 operations, want at most 15", n)
		}
		if n := b.server.peak.Load(); n > 5 {
			t.Errorf("%d connections at once, want at most 5", n)
		}
	})
}

// TestParkedIsSwept: a parked connection that no caller takes over is closed in the end.
func TestParkedIsSwept(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		w, err := b.cn.Connect(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go b.cn.Connect(ctx)
		synctest.Wait()
		b.cn.clock.Store(new(conn)) // not this wrapper: see age.go
		if w.(driver.Validator).IsValid() {
			t.Fatal("no caller wanted the connection")
		}
		cancel()
		synctest.Wait() // the waiter has gone
		_ = w.Close()
		synctest.Wait()
		if n := b.server.open.Load(); n != 1 {
			t.Fatalf("%d connections are open, want 1, parked", n)
		}
		time.Sleep(3 * parkTimeout)
		synctest.Wait()
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are still parked", n)
		}
	})
}

// TestLendingKeepsTheConnection: this DB asks Postgres about other backends over its only connection,
// which lies idle. It stays open in its wrapper.
func TestLendingKeepsTheConnection(t *testing.T) {
	for _, scope := range []Scope{PerConnection, PerCheckout} {
		bubble(t, 1, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
			for range 3 {
				if err := b.db.Ping(); err != nil {
					t.Fatal(err)
				}
				// the fake connection is none of pgx's, which lend finds out once it has it
				if err := b.cn.lend(t.Context(), nil); !errors.Is(err, semaphore.ErrClosed) {
					t.Fatal(err)
				}
				time.Sleep(5 * parkTimeout)
			}
			if open, dials := b.server.open.Load(), b.server.dials.Load(); open != 1 || dials != 1 {
				t.Errorf("%d connections are open after %d dials, want the first", open, dials)
			}
			if n := b.db.Stats().MaxIdleClosed; n != 0 {
				t.Errorf("database/sql has closed %d wrappers", n)
			}
		})
	}
}

// TestClaim: a Connect takes over the connection of an idle wrapper. That wrapper never touches it
// again, not even when the connection is idle again in another wrapper.
func TestClaim(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		ctx := context.Background()
		old, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !old.(driver.Validator).IsValid() {
			t.Fatal("the connection was not kept")
		}
		now, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times, want 1", n)
		}
		lost := func(when string) {
			t.Helper()
			if err := old.(driver.SessionResetter).ResetSession(ctx); !errors.Is(err,
				driver.ErrBadConn) {
				t.Errorf("%s: ResetSession: %v", when, err)
			}
			if _, err := old.(driver.ExecerContext).ExecContext(ctx, "x", nil); !errors.Is(err,
				driver.ErrBadConn) {
				t.Errorf("%s: ExecContext: %v", when, err)
			}
			if old.(driver.Validator).IsValid() {
				t.Errorf("%s: IsValid", when)
			}
			if old.(RawConn).Raw() != nil {
				t.Errorf("%s: Raw", when)
			}
		}
		lost("while it is out")
		if !now.(driver.Validator).IsValid() {
			t.Fatal("the connection was not kept")
		}
		lost("while it is idle again")
		_ = old.Close()
		if err := now.(driver.SessionResetter).ResetSession(ctx); err != nil {
			t.Error(err)
		}
		if _, err := now.(driver.ExecerContext).ExecContext(ctx, "x", nil); err != nil {
			t.Error(err)
		}
		_ = now.Close()
	})
}

// TestClaimFindsItDead: the turn's connection is unusable, and another is opened in its place.
func TestClaimFindsItDead(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		ctx := context.Background()
		old, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		old.(driver.Validator).IsValid()
		b.server.onReset = func(*fakeConn) error { return driver.ErrBadConn }
		now, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if dials, peak := b.server.dials.Load(), b.server.peak.Load(); dials != 2 || peak != 1 {
			t.Errorf("%d dials, %d at once", dials, peak)
		}
		_ = old.Close()
		_ = now.Close()
	})
}

// TestClaimedSocketCloses: the same, but the socket closes during the check, which ends the turn
// too.
func TestClaimedSocketCloses(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		ctx := context.Background()
		old, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		slot := old.(wrapper).base().slot
		old.(driver.Validator).IsValid()
		b.server.onReset = func(*fakeConn) error {
			slot.Leave() // like the socket
			return driver.ErrBadConn
		}
		now, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if f := b.cn.a.Figures(); f.Turns != 1 || f.Out != 1 {
			t.Errorf("after the claim: %+v, want 1 turn, and its slot out", f)
		}
		_ = old.Close()
		_ = now.Close()
	})
}

// TestWaiterBehindStatement: the only connection is idle with a statement, and a caller waits that
// cannot use it as it is.
func TestWaiterBehindStatement(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		b.cn.db.Store(b.db)
		st, err := b.db.Prepare("x")
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w, err := b.cn.Connect(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("the caller waited %v, want at most 100ms", d)
		}
		_ = w.Close()
		_ = st.Close()
	})
}

// TestStatementsKeepTheirConnection: while database/sql may close a statement on an idle
// connection, the connection keeps its wrapper.
func TestStatementsKeepTheirConnection(t *testing.T) {
	for kindName, kind := range map[string]func(fakeConn) driver.Conn{"none": plain, "all": full} {
		t.Run(kindName, func(t *testing.T) {
			bubble(t, 2, kind, Config{}, func(t *testing.T, b *bench) {
				st, err := b.db.Prepare("x")
				if err != nil {
					t.Fatal(err)
				}
				w, err := b.cn.Connect(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if n := b.server.dials.Load(); n != 2 {
					t.Errorf("dialled %d times, want 2", n)
				}
				_ = w.Close()
				if _, err := st.Exec(); err != nil {
					t.Error(err)
				}
				_ = st.Close()
				// A statement of a single operation does not count.
				if _, err := b.db.Exec("x"); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestOperationsOwnStatementDoesNotPin(t *testing.T) {
	bubble(t, 1, plain, Config{}, func(t *testing.T, b *bench) {
		if _, err := b.db.Exec("x"); err != nil {
			t.Fatal(err)
		}
		tx, err := b.db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Prepare("x"); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		w, err := b.cn.Connect(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times, want 1", n)
		}
		_ = w.Close()
	})
}
