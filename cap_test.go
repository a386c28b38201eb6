package passbuddy_test

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestCap: four sessions, one per process, want more connections than there are permits, and end
// connections in every way. The server's own view never shows more than the capacity.
func TestCap(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this needs real servers and some seconds")
	}
	s := start(t)
	for _, name := range subset.Of(t, 2, slices.Sorted(maps.Keys(openers))) {
		open := openers[name]
		for _, rough := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/rough %v", name, rough), func(t *testing.T) {
				const capacity = 5
				peak := s.watch(t)
				var ops, failed atomic.Int32
				// A slow machine needs longer for the fewest operations that mean anything.
				const fewest = 100
				end := time.Now().Add(subset.Length(time.Second, 2*time.Second))
				goesOn := func() bool { return time.Now().Before(end) || ops.Load() < fewest }
				var wg sync.WaitGroup
				var sems []*semaphore.Semaphore
				var dbs []*sql.DB
				for range 4 {
					sem := s.session(t, capacity)
					db := open(t, s, sem, passbuddy.Config{})
					sems, dbs = append(sems, sem), append(dbs, db)
					for range 10 {
						wg.Go(func() {
							for goesOn() {
								err := query(db, rough)
								if err != nil {
									failed.Add(1)
									t.Logf("%v", err)
								}
								ops.Add(1)
							}
						})
					}
				}
				if rough {
					wg.Go(func() { s.terminateSome(t, goesOn) })
				}
				wg.Wait()
				for _, db := range dbs {
					if err := db.Close(); err != nil {
						t.Error(err)
					}
				}
				// releases are sent in the background
				eventually(t, "no permit is left", func() bool {
					snap, err := sems[0].Snapshot(context.Background())
					return err == nil && snap.Held == 0
				})
				for _, sem := range sems {
					if err := sem.Close(); err != nil {
						t.Error(err)
					}
				}
				most := peak()
				t.Logf("%d operations, %d failed, at most %d backends", ops.Load(), failed.Load(),
					most)
				if most > capacity {
					t.Errorf("%d backends, capacity %d", most, capacity)
				}
				if failed.Load() > 0 && !rough {
					t.Errorf("%d operations failed", failed.Load())
				}
			})
		}
	}
}

// query does one operation. It ignores errors that the rough use causes.
func query(db *sql.DB, rough bool) error {
	ctx := context.Background()
	sleep := fmt.Sprintf("select pg_sleep(%v)", rand.Float64()*0.02)
	if rough && rand.IntN(2) == 0 {
		short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		defer cancel()
		ctx = short
	}
	var err error
	switch rand.IntN(4) {
	case 0:
		var st *sql.Stmt
		if st, err = db.PrepareContext(ctx, "select 1 where $1 = 1"); err == nil {
			_, err = st.ExecContext(ctx, 1)
			_ = st.Close()
		}
	case 1:
		var tx *sql.Tx
		if tx, err = db.BeginTx(ctx, nil); err == nil {
			_, err = tx.ExecContext(ctx, sleep)
			if e := tx.Commit(); err == nil {
				err = e
			}
		}
	default:
		_, err = db.ExecContext(ctx, sleep)
	}
	if rough && err != nil {
		for _, known := range []string{"deadline", "timeout", "canceling", "57P01", "terminat",
			"bad connection", "EOF", "reset by peer",
			"already been committed", "broken pipe", "closed", "conn busy", "failed transaction"} {
			if strings.Contains(err.Error(), known) {
				return nil
			}
		}
	}
	return err
}

func (s *stack) terminateSome(t *testing.T, goesOn func() bool) {
	ctx := context.Background()
	c, err := pgx.Connect(ctx, s.postgres.AdminURL())
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close(ctx)
	for ; goesOn(); time.Sleep(50 * time.Millisecond) {
		_, _ = c.Exec(ctx,
			"select pg_terminate_backend(pid) from pg_stat_activity where usename = $1 order by "+
				"random() limit 1", throwaway.Role)
	}
}
