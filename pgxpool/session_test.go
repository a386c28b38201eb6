package pgxpool_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// TestMinKeepsASession: with Config.Min, the only connection of a pool keeps its session state
// although another process has callers that wait.
func TestMinKeepsASession(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, scope := range []passbuddy.Scope{passbuddy.PerConnection, passbuddy.PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			f := newFleet(t, 2)
			opts := passbuddy.Config{Scope: scope}
			pool := f.pool(f.semaphore(func(cfg *semaphore.Config) { cfg.Min = 1 }), opts,
				func(cfg *pgxpool.Config) { cfg.MaxConns = 1 })
			other := f.process(opts)
			_, err := pool.Exec(ctxb, "create temporary table mine (x int)")
			ok(t, err)
			for range 3 {
				var callers sync.WaitGroup
				for range 4 {
					callers.Go(func() {
						if _, err := other.Exec(ctxb, "select pg_sleep(0.1)"); err != nil {
							t.Error(err)
						}
					})
				}
				callers.Wait()
				if _, err := pool.Exec(ctxb, "insert into mine values (1)"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
