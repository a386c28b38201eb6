package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// bubble runs f with a DB over a fake server under a fake clock, and checks at the end that everything was given back.
func bubble(t *testing.T, capacity int, kind func(fakeConn) driver.Conn, cfg Config, f func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{server: &server{t: t}, fleet: newFleet(t, capacity)}
		b.db, b.cn = wrapped(t, b.server, kind, b.fleet, cfg)
		f(t, b)
		_ = b.db.Close()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := b.fleet.holds(); n != 0 {
			t.Errorf("%d permits are held at the end; %+v", n, b.cn.a.Figures())
		}
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are open at the end", n)
		}
		if b.cn.joined.Load() && b.fleet.left != 1 {
			t.Errorf("the share was closed %d times", b.fleet.left)
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
						for range 5000 {
							if _, err := b.db.Exec("x"); err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				if n := b.server.dials.Load(); n > 2 {
					t.Errorf("dialled %d times", n)
				}
				if n := b.server.mostRuns.Load(); n != 1 {
					t.Errorf("%d operations at once", n)
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
			synctest.Wait() // it is in the queue
		}
		_ = first.Close()
		synctest.Wait()
		if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5, 6, 7}) {
			t.Errorf("served in the order %v", order)
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times", n)
		}
	})
}

// TestParking: with database/sql's default of two idle connections, a busy DB hands its connections from caller to
// caller and does not reconnect.
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
			t.Errorf("dialled %d times for 5000 operations", n)
		}
		if n := b.server.peak.Load(); n > 5 {
			t.Errorf("%d connections at once", n)
		}
	})
}

// TestParkedIsSwept: a connection that nobody takes over does not stay for ever.
func TestParkedIsSwept(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		w, err := b.cn.Connect(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		go b.cn.Connect(ctx)
		synctest.Wait()
		if w.(driver.Validator).IsValid() {
			t.Fatal("it was not wanted")
		}
		cancel()
		synctest.Wait() // the waiter has gone
		_ = w.Close()
		synctest.Wait()
		if n := b.server.open.Load(); n != 1 {
			t.Fatalf("%d connections, none is parked", n)
		}
		time.Sleep(3 * parkedMost)
		synctest.Wait()
		if n := b.server.open.Load(); n != 0 {
			t.Errorf("%d connections are still parked", n)
		}
	})
}

// TestClaim: a Connect takes over the connection of a wrapper that lies idle, which then never touches it again, not
// even when it is idle again in other hands.
func TestClaim(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		ctx := context.Background()
		old, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !old.(driver.Validator).IsValid() {
			t.Fatal("not kept")
		}
		now, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n := b.server.dials.Load(); n != 1 {
			t.Errorf("dialled %d times", n)
		}
		lost := func(when string) {
			t.Helper()
			if err := old.(driver.SessionResetter).ResetSession(ctx); !errors.Is(err, driver.ErrBadConn) {
				t.Errorf("%s: ResetSession: %v", when, err)
			}
			if _, err := old.(driver.ExecerContext).ExecContext(ctx, "x", nil); !errors.Is(err, driver.ErrBadConn) {
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
			t.Fatal("not kept")
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

// TestClaimFindsItDead: the connection that came with the turn is unusable, and another is opened in its place.
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

// TestClaimedSocketCloses: the same, but its socket is closed while it is looked at, which ends the turn too.
func TestClaimedSocketCloses(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		ctx := context.Background()
		old, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		unit := old.(wrapper).base().unit
		old.(driver.Validator).IsValid()
		b.server.onReset = func(*fakeConn) error {
			unit.Leave() // as the socket does
			return driver.ErrBadConn
		}
		now, err := b.cn.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if f := b.cn.a.Figures(); f.Turns != 1 || f.Out != 1 {
			t.Errorf("%+v", f)
		}
		_ = old.Close()
		_ = now.Close()
	})
}

// TestWaiterBehindStatement: the only connection lies idle with a statement, and a caller waits who cannot have it as it is.
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
			t.Errorf("it took %v", d)
		}
		_ = w.Close()
		_ = st.Close()
	})
}

// TestStatementsKeepTheirConnection: while database/sql may close a statement on an idle connection, that does not change hands.
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
					t.Errorf("dialled %d times", n)
				}
				_ = w.Close()
				if _, err := st.Exec(); err != nil {
					t.Error(err)
				}
				_ = st.Close()
				// Those of one operation do not count.
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
			t.Errorf("dialled %d times", n)
		}
		_ = w.Close()
	})
}

// TestIdleIsGivenBack: the fleet needs a permit whose connection lies idle.
func TestIdleIsGivenBack(t *testing.T) {
	for name, prepare := range map[string]bool{"free": false, "with a statement, through the DB": true} {
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
					t.Errorf("%d connections, %d permits", open, held)
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

// TestPinnedGivesBackAtItsNextUse: without the DB and without the socket, a connection with statements is given back when it is next touched.
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
			t.Errorf("dialled %d times", n)
		}
	})
}

// TestReturnPaysTheFleetFirst: a connection that is recalled while it is out ends at its return.
func TestReturnPaysTheFleetFirst(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		c := b.conn(t)
		b.fleet.take(1)
		synctest.Wait()
		if n := b.server.open.Load(); n != 1 {
			t.Fatal("closed while it was out")
		}
		_ = c.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if open, held := b.server.open.Load(), b.fleet.holds(); open != 0 || held != 0 {
			t.Errorf("%d connections, %d permits", open, held)
		}
	})
}

// TestOpener: what database/sql opens in the background holds no permit until it is used.
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
				if log := b.server.calls(); !slices.Contains(log, "ExecContext [{ 1 {1 2}} { 2 skip}]") {
					t.Errorf("arguments were not checked: %v", log)
				}

				// The same, but the caller has gone when the connection comes.
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
					t.Errorf("%d permits are held", n)
				}
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestOpenerIsFirst: the opener makes the very first connection, and when it comes nobody wants it any more.
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
					t.Fatal("connected")
				}
				second := <-attempts // by the opener, for the other
				cancel()
				if err := <-got; !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				second <- nil
				synctest.Wait()
				b.server.connectErr = nil
				time.Sleep(10 * time.Second)
				if f := b.cn.a.Figures(); f.Turns != 0 || f.Out != 0 {
					t.Errorf("a connection that nobody uses: %+v", f)
				}
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// discard returns c as a connection that went bad.
func discard(c *sql.Conn) {
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
}

func TestCallersContext(t *testing.T) {
	type myKey struct{}
	cause := errors.New("shutting down")
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 1, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				if err := b.db.Ping(); err != nil {
					t.Fatal(err)
				}
				second := b.conn(t)
				warm := b.conn2(t, scope) // PerCheckout: a used connection lies idle, so the checkout is a ResetSession
				ctx, cancel := context.WithTimeoutCause(context.WithValue(context.Background(), myKey{}, 1), time.Second, cause)
				defer cancel()
				start := time.Now()
				_, err := b.db.ExecContext(ctx, "x")
				for _, want := range []error{semaphore.ErrCapacity, context.DeadlineExceeded, cause} {
					if !errors.Is(err, want) {
						t.Errorf("%v is not %v", err, want)
					}
				}
				if d := time.Since(start); d != time.Second {
					t.Errorf("took %v", d)
				}
				if f := b.cn.a.Figures(); f.Waiting != 0 {
					t.Errorf("left in the queue: %+v", f)
				}
				warm()
				_ = second.Close()
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// conn2 lets another used connection lie idle where that is possible beside the one that is out.
func (b *bench) conn2(t *testing.T, scope Scope) (undo func()) {
	t.Helper()
	if scope == PerConnection {
		return func() {}
	}
	b.fleet.mu.Lock()
	b.fleet.capacity++
	b.fleet.mu.Unlock()
	_ = b.conn(t).Close()
	synctest.Wait()
	b.fleet.mu.Lock()
	b.fleet.capacity--
	b.fleet.mu.Unlock()
	return func() {}
}

func TestAcquireTimeout(t *testing.T) {
	uses := map[string]func(b *bench, st *sql.Stmt) error{
		"exec":     func(b *bench, _ *sql.Stmt) error { _, err := b.db.Exec("x"); return err },
		"query":    func(b *bench, _ *sql.Stmt) error { _, err := b.db.Query("x"); return err },
		"begin":    func(b *bench, _ *sql.Stmt) error { _, err := b.db.Begin(); return err },
		"prepare":  func(b *bench, _ *sql.Stmt) error { _, err := b.db.Prepare("x"); return err },
		"ping":     func(b *bench, _ *sql.Stmt) error { return b.db.Ping() },
		"conn":     func(b *bench, _ *sql.Stmt) error { _, err := b.db.Conn(context.Background()); return err },
		"prepared": func(_ *bench, st *sql.Stmt) error { _, err := st.Exec(); return err },
	}
	for _, scope := range scopes {
		for name, use := range uses {
			t.Run(fmt.Sprintf("%v/%s", scope, name), func(t *testing.T) {
				bubble(t, 1, full, Config{Scope: scope, AcquireTimeout: 3 * time.Second}, func(t *testing.T, b *bench) {
					st, err := b.db.Prepare("x")
					if err != nil {
						t.Fatal(err)
					}
					out := b.conn(t)
					b.conn2(t, scope)
					dials := b.server.dials.Load()
					start := time.Now()
					err = use(b, st)
					if !errors.Is(err, semaphore.ErrCapacity) || errors.Is(err, driver.ErrBadConn) {
						t.Errorf("%v", err)
					}
					if d := time.Since(start); d != 3*time.Second {
						t.Errorf("took %v", d)
					}
					if n := b.server.dials.Load() - dials; n != 0 {
						t.Errorf("dialled %d times", n)
					}
					_ = out.Close()
					if _, err := st.Exec(); err != nil {
						t.Error(err)
					}
					_ = st.Close()
				})
			})
		}
	}
}

// TestRefusalIsOneCheckouts: all who have context.Background share a context, and no refusal.
func TestRefusalIsOneCheckouts(t *testing.T) {
	var r refusals
	ctx, refused := context.Background(), errors.New("refused")
	r.add(ctx, refused)
	others := make(chan error)
	go func() { others <- r.of(ctx, true) }()
	if err := <-others; err != nil {
		t.Errorf("another goroutine: %v", err)
	}
	if err := r.of(context.TODO(), true); err != nil {
		t.Errorf("another context: %v", err)
	}
	if r.of(ctx, false) != refused || r.of(ctx, true) != refused {
		t.Error("its own retries are not refused")
	}
	if err := r.of(ctx, false); err != nil {
		t.Errorf("after the last: %v", err)
	}
}

func TestCloseWhileOut(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 3, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				idle, out := b.conn(t), b.conn(t)
				_ = idle.Close()
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
			})
		})
	}
}

// TestSlowClose: the driver's Close takes its time, and nobody waits for it but those who need the permit.
func TestSlowClose(t *testing.T) {
	bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
		b.server.onClose = func() { time.Sleep(time.Minute) }
		c := b.conn(t)
		start := time.Now()
		discard(c)
		_ = b.db.Stats()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close took %v", d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := b.db.PingContext(ctx); !errors.Is(err, semaphore.ErrCapacity) {
			t.Errorf("its permit was free before it was closed: %v", err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		b.server.onClose = nil
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
	})
}

// TestStatementOutlivesBadConnection: a Tx ends with a bad connection, and its user closes the statements after that, as deferred calls do. The
// driver must not see both at once.
func TestStatementOutlivesBadConnection(t *testing.T) {
	for range 100 {
		bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
			b.server.onExec = func(context.Context, string) error { return driver.ErrBadConn }
			c := b.conn(t)
			st, err := c.PrepareContext(context.Background(), "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ExecContext(context.Background(), "x"); !errors.Is(err, driver.ErrBadConn) {
				t.Fatal(err)
			}
			_ = st.Close()
		})
	}
}

func TestFence(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 2, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				out, idle := b.conn(t), b.conn(t)
				_ = idle.Close()
				b.fleet.lose(t)
				synctest.Wait()
				time.Sleep(time.Second)
				wantOpen := int32(1) // out: nothing may call it while its user might
				if scope == PerCheckout {
					wantOpen = 2 // nothing covers an idle one
				}
				if n := b.server.open.Load(); n != wantOpen {
					t.Errorf("%d connections are open", n)
				}
				if err := out.PingContext(context.Background()); !errors.Is(err, driver.ErrBadConn) {
					t.Errorf("the lease is lost, and it works: %v", err)
				}
				_ = out.Close()
				time.Sleep(time.Second)
				if err := b.db.Ping(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestClosedSemaphore: nobody is served, idle connections end, those that are out fail.
func TestClosedSemaphore(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		out, idle := b.conn(t), b.conn(t)
		_ = idle.Close()
		b.cn.a.Closed()
		time.Sleep(time.Second)
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		if err := b.db.Ping(); !errors.Is(err, semaphore.ErrClosed) {
			t.Errorf("%v", err)
		}
		if err := out.PingContext(context.Background()); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%v", err)
		}
		_ = out.Close()
	})
}

// TestRandomUse: whatever is done, no connection is used twice at once (the fake driver sees it), there are never too many,
// and in the end all is given back.
func TestRandomUse(t *testing.T) {
	for kindName, kind := range kinds {
		for _, scope := range scopes {
			for _, maxOpen := range []int{0, 4} {
				t.Run(fmt.Sprintf("%s/%v/max %d", kindName, scope, maxOpen), func(t *testing.T) {
					seed := rand.Uint64()
					t.Logf("seed %d", seed)
					bubble(t, 3, kind, Config{Scope: scope}, func(t *testing.T, b *bench) {
						b.db.SetMaxOpenConns(maxOpen)
						b.db.SetMaxIdleConns(2)
						if seed%2 == 0 {
							b.cn.db.Store(b.db)
						}
						st, err := b.db.Prepare("x")
						if err != nil {
							t.Fatal(err)
						}
						var wg sync.WaitGroup
						for i := range 8 {
							r := rand.New(rand.NewPCG(seed, uint64(i)))
							uses := 7
							if scope == PerCheckout {
								// Closing a statement waits for the connection's lock, which ResetSession holds while it waits for a
								// permit; and fake time does not pass while a lock is waited for.
								uses = 6
							}
							wg.Go(func() { randomUse(t, b.db, st, r, uses) })
						}
						wg.Go(func() {
							r := rand.New(rand.NewPCG(seed, 99))
							for range 50 {
								time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
								b.fleet.take(1)
								time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
								b.fleet.giveBack(1)
							}
						})
						wg.Wait()
						_ = st.Close()
						if scope == PerConnection {
							if n := b.server.peak.Load(); n > 3 {
								t.Errorf("%d connections at once", n)
							}
						} else if n := b.server.mostRuns.Load(); n > 8 {
							t.Errorf("%d operations at once", n)
						}
					})
				})
			}
		}
	}
}

func randomUse(t *testing.T, db *sql.DB, st *sql.Stmt, r *rand.Rand, uses int) {
	check := func(err error) {
		if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, sql.ErrTxDone) {
			t.Error(err)
		}
	}
	for range 150 {
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if r.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(r.IntN(20))*time.Millisecond)
		}
		pause := func() { time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond) }
		switch r.IntN(uses) {
		case 0:
			_, err := db.ExecContext(ctx, "x")
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
				pause()
				if err := tx.Commit(); !errors.Is(err, context.DeadlineExceeded) {
					check(err)
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
			c, err := db.Conn(ctx)
			check(err)
			if err == nil {
				own, err := c.PrepareContext(ctx, "x")
				check(err)
				_ = c.Close()
				pause()
				if own != nil {
					_ = own.Close()
				}
			}
		}
		cancel()
		pause()
	}
}
