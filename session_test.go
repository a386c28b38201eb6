package passbuddy_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestMinKeepsASession: with Config.Min, the only connection of a DB keeps its session state
// although another process has callers that wait.
func TestMinKeepsASession(t *testing.T) {
	s := start(t)
	cfg, err := pgx.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(fmt.Sprint(scope), func(t *testing.T) {
			t.Parallel() // they mostly wait
			open := func(least int) *sql.DB {
				sem, err := semaphore.Open(context.Background(), s.redis.URL(), semaphore.Config{
					Name: t.Name(), Capacity: 2, Min: least, TTL: time.Minute,
					Logger: slog.New(slog.DiscardHandler),
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { sem.Close() })
				db := passbuddy.OpenDB(stdlib.GetConnector(*cfg), sem,
					passbuddy.Config{Scope: scope})
				t.Cleanup(func() { db.Close() })
				return db
			}
			db, other := open(1), open(0)
			db.SetMaxOpenConns(1)
			if _, err := db.Exec("create temporary table mine (x int)"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				var callers sync.WaitGroup
				for range 4 {
					callers.Go(func() {
						if _, err := other.Exec("select pg_sleep(0.1)"); err != nil {
							t.Error(err)
						}
					})
				}
				callers.Wait()
				if _, err := db.Exec("insert into mine values (1)"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
