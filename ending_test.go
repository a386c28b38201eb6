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

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

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
					t.Errorf("%d connections are open after Close, want 1", n)
				}
				if err := out.PingContext(context.Background()); err != nil {
					t.Error(err)
				}
				_ = out.Close()
			})
		})
	}
}

// TestSlowClose: the driver's Close is slow, and only callers that need the permit wait for it.
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
			t.Errorf("the permit was free before its connection was closed: %v", err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		b.server.onClose = nil
		if err := b.db.Ping(); err != nil {
			t.Error(err)
		}
	})
}

// TestStatementOutlivesBadConnection: a Tx ends with a bad connection, and its user closes the
// statements after that, as deferred calls do. The driver must not get both calls at once.
func TestStatementOutlivesBadConnection(t *testing.T) {
	for range subset.Length(20, 100) {
		bubble(t, 1, full, Config{}, func(t *testing.T, b *bench) {
			b.server.onExec = func(context.Context, string) error { return driver.ErrBadConn }
			c := b.conn(t)
			st, err := c.PrepareContext(context.Background(), "x")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ExecContext(context.Background(), "x"); !errors.Is(err,
				driver.ErrBadConn) {
				t.Fatal(err)
			}
			_ = st.Close()
		})
	}
}

func TestAbort(t *testing.T) {
	for _, scope := range scopes {
		t.Run(scope.String(), func(t *testing.T) {
			bubble(t, 2, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
				out, idle := b.conn(t), b.conn(t)
				_ = idle.Close()
				b.fleet.lose(t)
				synctest.Wait()
				time.Sleep(time.Second)
				// checked out: no other call may run while its user may call it
				wantOpen := int32(1)
				if scope == PerCheckout {
					wantOpen = 2 // no permit covers an idle connection
				}
				if n := b.server.open.Load(); n != wantOpen {
					t.Errorf("%d connections are open, want %d", n, wantOpen)
				}
				if err := out.PingContext(context.Background()); !errors.Is(err,
					driver.ErrBadConn) {
					t.Errorf("the lease is lost, but the connection works: %v", err)
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

// TestClosedSemaphore: no caller is served, idle connections end, checked-out connections fail.
func TestClosedSemaphore(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		out, idle := b.conn(t), b.conn(t)
		_ = idle.Close()
		b.cn.a.Closed()
		time.Sleep(time.Second)
		if n := b.server.open.Load(); n != 1 {
			t.Errorf("%d connections are open, want 1", n)
		}
		if err := b.db.Ping(); !errors.Is(err, semaphore.ErrClosed) {
			t.Errorf("a new checkout ends with %v, want ErrClosed", err)
		}
		if err := out.PingContext(context.Background()); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("the checked-out connection answers %v, want ErrBadConn", err)
		}
		_ = out.Close()
	})
}

// TestRandomUse: under any use, no two callers use a connection at once (the fake driver checks
// it), the connections keep the cap, and in the end everything is given back.
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
							u := &randomUser{
								db: b.db, st: st, dice: rand.New(rand.NewPCG(seed, uint64(i))),
								check: func(err error) {
									if err != nil && !errors.Is(err, context.DeadlineExceeded) &&
										!errors.Is(err, sql.ErrTxDone) {
										t.Error(err)
									}
								},
							}
							uses := basicUses
							if scope == PerConnection {
								// In PerCheckout: see openStatement.
								uses = append(slices.Clone(uses), (*randomUser).outlivingStatement)
							}
							wg.Go(func() { u.run(subset.Length(50, 150), uses...) })
						}
						wg.Go(func() {
							r := rand.New(rand.NewPCG(seed, 99))
							for range subset.Length(20, 50) {
								time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
								b.fleet.take(1)
								time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
								b.fleet.giveBack(1)
							}
						})
						wg.Go(func() { // asks Postgres about other backends, over a connection of the DB
							r := rand.New(rand.NewPCG(seed, 98))
							for range subset.Length(20, 50) {
								time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
								ctx, cancel := context.WithTimeout(t.Context(),
									time.Duration(r.IntN(20))*time.Millisecond)
								_ = b.cn.lend(ctx, nil) // an error, as the connection is not pgx's
								cancel()
							}
						})
						wg.Wait()
						_ = st.Close()
						if scope == PerConnection {
							if n := b.server.peak.Load(); n > 3 {
								t.Errorf("%d connections at once, want at most 3", n)
							}
						} else if n := b.server.mostRuns.Load(); n > 8 {
							t.Errorf("%d operations at once, want at most 8", n)
						}
					})
				})
			}
		}
	}
}
