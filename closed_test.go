package passbuddy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestCloseWakesCallers: callers that wait for a permit get database/sql's own error for a closed
// DB at once, and no connection is opened for them.
func TestCloseWakesCallers(t *testing.T) {
	ctx := context.Background()
	for _, scope := range scopes {
		// with SetMaxOpenConns the opener hands out empty wrappers
		for _, most := range []int{0, 2} {
			inBubble(t, scope.String(), func(t *testing.T) {
				s := &server{t: t}
				fleet := newFleet(t, 1)
				db, _ := wrapped(t, s, full, fleet, Config{Scope: scope})
				db.SetMaxOpenConns(most)
				out, err := db.Conn(ctx)
				must(t)(out, err)
				told := make(chan error)
				calls := []func() error{
					db.Ping,
					func() error { _, err := db.Exec("x"); return err },
					func() error { _, err := db.Begin(); return err },
					func() error { _, err := db.Conn(ctx); return err },
				}
				for _, call := range calls {
					go func() { told <- call() }()
				}
				time.Sleep(time.Second)
				synctest.Wait()
				start := time.Now()
				must(t)(nil, db.Close())
				for range calls {
					if err := <-told; err == nil || err.Error() != "sql: database is closed" {
						t.Errorf("a waiting caller got: %v", err)
					}
				}
				if d := time.Since(start); d > 0 {
					t.Errorf("the waiting callers returned after %v, want at once", d)
				}
				must(t)(nil, out.PingContext(ctx)) // a caller that has a connection keeps it
				must(t)(nil, out.Close())
				time.Sleep(time.Minute)
				if n := s.dials.Load(); n != 1 {
					t.Errorf("%d connections were opened, want only the 1 from before Close", n)
				}
				if n := s.open.Load(); n != 0 {
					t.Errorf("%d connections are left", n)
				}
			})
		}
	}
}
