package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// checkoutUses are the ways to use a connection. Each works for a millisecond, see busy.
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

// TestOpenFollowsPermits: many callers on few permits open as many connections as there are
// permits.
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
					most := int32(3 + 1) // the statement keeps one connection
					if strings.HasPrefix(name, "statement") {
						most = 2 * 3 // a connection returned while no caller waits keeps its permit
					}
					if n := b.server.peak.Load(); n > most {
						t.Errorf("%d connections were open on 3 permits, want at most %d", n, most)
					}
					if n := b.server.dials.Load(); n > 2*most {
						t.Errorf("dialled %d times, want at most %d", n, 2*most)
					}
					_ = st.Close()
				})
			})
		}
	}
}

// TestIdleStaysWarm: at rest no connection that SetMaxIdleConns allows is closed.
func TestIdleStaysWarm(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 4)
		time.Sleep(time.Hour)
		if n := b.server.open.Load(); n != 4 {
			t.Errorf("%d connections are open, want 4", n)
		}
		b.atOnce(t, 4)
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times, want 4", n)
		}
		time.Sleep(100 * time.Millisecond) // permits are kept for a moment
		if n := b.fleet.holds(); n != 0 {
			t.Errorf("%d permits are held, want none", n)
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

// TestSurplusEnds: the process has fewer permits than before, and callers wait. It closes the
// surplus connections.
func TestSurplusEnds(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.server.onExec = busy
		b.atOnce(t, 4)
		b.fleet.take(3)
		stop := time.Now().Add(3 * parkTimeout)
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
		time.Sleep(2*parkTimeout + 10*time.Millisecond)
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open on one permit, want 1", n)
		}
		wg.Wait()
		if n := b.server.dials.Load(); n != 4 {
			t.Errorf("dialled %d times, want 4", n)
		}
		b.fleet.giveBack(3)
	})
}

// TestDeadIdleConnections: a connection that the driver rejects at the checkout is closed, and the
// checkout tries the next.
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
			t.Errorf("%d connections are open, dialled %d times; want 1 and 3", open, dials)
		}
	})
}

// TestCancelledResetCostsOneConnection: a driver that fails because the caller has gone would fail
// with all other connections too.
func TestCancelledResetCostsOneConnection(t *testing.T) {
	bubble(t, 3, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 3)
		ctx, cancel := context.WithCancel(context.Background())
		b.server.onReset = func(*fakeConn) error {
			cancel()
			return driver.ErrBadConn
		}
		if err := b.db.PingContext(ctx); !errors.Is(err, context.Canceled) ||
			errors.Is(err, driver.ErrBadConn) {
			t.Error(err)
		}
		synctest.Wait()
		if n := b.server.open.Load(); n != 2 {
			t.Errorf("%d connections are open, want 2", n)
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
				b.server.connectErr = func() error {
					return fmt.Errorf("%w: %w", refused, driver.ErrBadConn)
				}
				err = use(b.db, st)
				if err == nil || errors.Is(err, driver.ErrBadConn) {
					t.Errorf("the caller is told %v, want an error other than ErrBadConn", err)
				}
				b.server.onReset, b.server.connectErr = nil, nil
				if err := use(b.db, st); err != nil {
					t.Errorf("the next use fails: %v", err)
				}
				_ = st.Close()
			})
		})
	}
}

// TestRefusedConnUnderMaxOpenConns: database/sql's last try gets a returned wrapper, so no error of
// Connect can reach the caller.
func TestRefusedConnUnderMaxOpenConns(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout, AcquireTimeout: time.Second},
		func(t *testing.T, b *bench) {
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
		if err, last := r.again(ctx, false); err != refused || last != want {
			t.Errorf("retry %d is refused with %v, last %v", i+1, err, last)
		}
	}
	if err, _ := r.again(ctx, false); err != nil {
		t.Errorf("the checkout after the last retry is refused: %v", err)
	}
}

// TestLateAbort: the lease of a checkout is lost, and the connection is checked out again when the
// loss is reported.
func TestLateAbort(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		first := b.conn(t)
		var before *physical
		must(t)(nil, first.Raw(func(dc any) error { before = dc.(wrapper).base().ph; return nil }))
		slot := before.slot
		_ = first.Close()
		second := b.conn(t)
		must(t)(nil, second.Raw(func(dc any) error {
			if dc.(wrapper).base().ph != before {
				t.Error("the checkout got another connection")
			}
			return nil
		}))
		b.cn.Abort(slot)
		if err := second.PingContext(context.Background()); err != nil {
			t.Errorf("the connection ended for a permit that it does not use: %v", err)
		}
		_ = second.Close()
	})
}

// TestAbortBeforeReturn: a connection whose lease was lost while it was checked out does not return
// to the idle list.
func TestAbortBeforeReturn(t *testing.T) {
	bubble(t, 2, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		c := b.conn(t)
		b.fleet.lose(t)
		synctest.Wait()
		_ = c.Close()
		time.Sleep(time.Second)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open, want none", n)
		}
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
	})
}

// TestPinnedStaysWithItsWrapper: no caller waits, so the statement keeps its connection and is not
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
				t.Error("the statement was prepared again")
			}
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times, want 1", n)
		}
		_ = st.Close()
	})
}

// TestCloseEndsIdleConnections: DB.Close waits for idle connections, and connections returned later
// are closed.
func TestCloseEndsIdleConnections(t *testing.T) {
	bubble(t, 4, full, Config{Scope: PerCheckout}, func(t *testing.T, b *bench) {
		b.atOnce(t, 4)
		out := b.conn(t)
		if err := b.db.Close(); err != nil {
			t.Error(err)
		}
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open after Close, want 1", n)
		}
		if err := out.PingContext(context.Background()); err != nil {
			t.Error(err)
		}
		_ = out.Close()
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open in the end, want none", n)
		}
	})
}
