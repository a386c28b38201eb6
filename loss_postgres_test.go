package passbuddy_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/throwaway"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestLostLeaseOverPgx takes Redis away for longer than the lease. The running operation, and the
// next one on the same connection, fail with an error that names the loss. Prepared statements and
// Commit bypass the wrapper.
func TestLostLeaseOverPgx(t *testing.T) {
	s := start(t)
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			t.Parallel() // they mostly wait
			rd, err := throwaway.StartRedis(context.Background(), throwaway.RedisOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer rd.Stop()
			sem, err := semaphore.Open(context.Background(), rd.URL(), semaphore.Config{
				Name: "lost", Capacity: 4, TTL: time.Second,
				Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer sem.Close()
			db := openRegistered(t, stdlib.GetDefaultDriver(),
				s.postgres.URL()+"&application_name="+scope.String(), sem,
				passbuddy.Config{Scope: scope})
			defer db.Close()
			calls := map[string]func() error{}
			running := make(chan error, 1)
			for _, name := range []string{"running", "Exec", "Stmt.Exec", "Commit"} {
				var tx *sql.Tx
				var st *sql.Stmt
				eventually(t, "a transaction", func() bool {
					var err error
					tx, st, err = prepare(db)
					// A machine that stalls loses leases of a second.
					if err != nil && !errors.Is(err, semaphore.ErrLost) {
						t.Fatal(err)
					}
					return err == nil
				})
				defer tx.Rollback()
				switch name {
				case "running":
					go func() { _, err := tx.Exec("select pg_sleep(60)"); running <- err }()
					calls[name] = func() error { return <-running }
				case "Exec":
					calls[name] = func() error { _, err := tx.Exec("select 1"); return err }
				case "Stmt.Exec":
					calls[name] = func() error { _, err := st.Exec(); return err }
				case "Commit":
					calls[name] = tx.Commit
				}
			}
			rd.Kill()
			running <- <-running // its end shows that the lease is lost
			s.ended(t, scope.String())
			for name, call := range calls {
				if err := call(); !errors.Is(err, semaphore.ErrLost) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if err := rd.Restart(context.Background()); err != nil { // so that go-redis's dials end
				t.Error(err)
			}
		})
	}
}

// prepare begins a transaction and prepares a statement in it.
func prepare(db *sql.DB) (*sql.Tx, *sql.Stmt, error) {
	tx, err := db.Begin()
	if err != nil {
		return nil, nil, err
	}
	st, err := tx.Prepare("select 1")
	if err != nil {
		_ = tx.Rollback()
	}
	return tx, st, err
}

// ended waits until a program has no backend any more.
func (s *stack) ended(t *testing.T, name string) {
	t.Helper()
	c, err := pgx.Connect(context.Background(), s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	eventually(t, "no backend is left", func() bool {
		var n int
		if err := c.QueryRow(context.Background(), "select count(*) from pg_stat_activity "+
			"where application_name = $1", name).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}
