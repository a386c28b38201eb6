package passbuddy_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

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
			db := openRegistered(t, stdlib.GetDefaultDriver(), s.postgres.URL(), sem,
				passbuddy.Config{Scope: scope})
			defer db.Close()
			calls := map[string]func() error{}
			running := make(chan error, 1)
			for _, name := range []string{"running", "Exec", "Stmt.Exec", "Commit"} {
				tx, err := db.Begin()
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				st, err := tx.Prepare("select 1")
				if err != nil {
					t.Fatal(err)
				}
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
			time.Sleep(time.Second)
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
