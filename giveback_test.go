package passbuddy

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestIdleIsGivenBack: the fleet needs a permit whose connection is idle.
func TestIdleIsGivenBack(t *testing.T) {
	for name, prepare := range map[string]bool{"free": false,
		"with a statement, through the DB": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
				b.cn.db.Store(b.db)
				var st *sql.Stmt
				if prepare {
					var err error
					if st, err = b.db.Prepare("x"); err != nil {
						t.Fatal(err)
					}
				} else if err := b.db.Ping(); err != nil {
					t.Fatal(err)
				}
				b.fleet.take(1)
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if open, held := b.server.open.Load(), b.fleet.holds(); open != 0 || held != 0 {
					t.Errorf("%d connections are open and %d permits held, want none", open, held)
				}
				if prepare {
					if _, err := st.Exec(); err != nil {
						t.Error(err)
					}
					_ = st.Close()
				} else if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestPinnedGivesBackAtItsNextUse: without access to the DB and the socket, a connection with
// statements is given back at its next use.
func TestPinnedGivesBackAtItsNextUse(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		st, err := b.db.Prepare("x")
		if err != nil {
			t.Fatal(err)
		}
		b.fleet.take(1)
		time.Sleep(time.Second)
		if _, err := st.Exec(); err != nil {
			t.Error(err)
		}
		_ = st.Close()
		synctest.Wait()
		if n := b.server.dials.Load(); n != 2 {
			t.Errorf("dialled %d times, want 2", n)
		}
	})
}

// TestReturnPaysTheFleetFirst: a connection that is recalled while it is checked out ends at its
// return.
func TestReturnPaysTheFleetFirst(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		c := b.conn(t)
		b.fleet.take(1)
		synctest.Wait()
		if n := b.server.open.Load(); n != 1 {
			t.Fatal("closed while it was checked out")
		}
		_ = c.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if open, held := b.server.open.Load(), b.fleet.holds(); open != 0 || held != 0 {
			t.Errorf("%d connections are open and %d permits held, want none", open, held)
		}
	})
}

// TestOpener: a connection that database/sql opens in the background holds no permit until it is
// used.
func TestOpener(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				b.db.SetMaxOpenConns(1)
				c := b.conn(t)
				got := make(chan error)
				go func() {
					_, err := b.db.Exec("x", point{1, 2}, "remove", "skip")
					got <- err
				}()
				synctest.Wait()
				b.server.calls()
				discard(c)
				if err := <-got; err != nil {
					t.Fatal(err)
				}
				if log := b.server.calls(); !slices.Contains(log,
					"ExecContext [{ 1 {1 2}} { 2 skip}]") {
					t.Errorf("arguments were not checked: %v", log)
				}

				// The same, but the caller has gone when the connection is ready.
				c = b.conn(t)
				ctx, cancel := context.WithCancel(context.Background())
				go func() {
					_, err := b.db.ExecContext(ctx, "x")
					got <- err
				}()
				synctest.Wait()
				cancel()
				discard(c)
				if err := <-got; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				if n := b.fleet.holds(); n != 0 {
					t.Errorf("%d permits are held, want none", n)
				}
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestOpenerIsFirst: the opener makes the very first connection, and no caller wants it any more
// when it is ready.
func TestOpenerIsFirst(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				b.db.SetMaxOpenConns(1)
				attempts := make(chan chan error)
				b.server.connectErr = func() error {
					reply := make(chan error)
					attempts <- reply
					return <-reply
				}
				got := make(chan error)
				go func() { got <- b.db.Ping() }()
				first := <-attempts
				ctx, cancel := context.WithCancel(context.Background())
				go func() { got <- b.db.PingContext(ctx) }()
				synctest.Wait()
				first <- errors.New("not now")
				if err := <-got; err == nil {
					t.Fatal("the first connect succeeded")
				}
				second := <-attempts // by the opener, for the other caller
				cancel()
				if err := <-got; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				second <- nil
				synctest.Wait()
				b.server.connectErr = nil
				time.Sleep(10 * time.Second)
				if f := b.cn.a.Figures(); f.Turns != 0 || f.Out != 0 {
					t.Errorf("a permit for an unused connection: %+v", f)
				}
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
