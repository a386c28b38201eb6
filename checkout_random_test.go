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
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestRandomCheckouts uses a DB in every way, while its limits change, connections die, dials fail,
// and leases are lost. No two callers use a connection at once, and in the end everything is given
// back (see bubble).
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
					oneIn := func(n int) bool {
						mu.Lock()
						defer mu.Unlock()
						return chance.IntN(n) == 0
					}
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
								b.db.SetConnMaxLifetime(
									time.Duration(r.IntN(3)) * 50 * time.Millisecond)
							case 2:
								b.db.SetConnMaxIdleTime(
									time.Duration(r.IntN(3)) * 50 * time.Millisecond)
							case 3:
								b.fleet.take(1)
								time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
								b.fleet.giveBack(1)
							case 4:
								_ = b.db.Stats()
							case 5:
								// the fake fleet does not get lost permits back
								if losses--; losses >= 0 {
									b.fleet.lose(t)
								}
							}
						}
					})
					check := func(err error) {
						for _, known := range []error{
							context.DeadlineExceeded, sql.ErrTxDone, sql.ErrConnDone, failed,
							semaphore.ErrLost,
						} {
							if errors.Is(err, known) {
								return
							}
						}
						// A lease that is lost while its connection is checked out ends the
						// connection with ErrBadConn, like a broken connection.
						if err != nil && !errors.Is(err, driver.ErrBadConn) {
							t.Error(err)
						}
					}
					uses := append(slices.Clone(basicUses), (*randomUser).preparedTransaction,
						(*randomUser).openStatement, (*randomUser).rawAndStatement)
					for i := range 8 {
						wg.Go(func() {
							u := &randomUser{
								db: b.db, st: st, check: check,
								dice: rand.New(rand.NewPCG(seed, uint64(i))),
							}
							u.run(subset.Length(70, 200), uses...)
							mu.Lock()
							statements = append(statements, u.open...)
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
