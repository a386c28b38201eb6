package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// discard returns c as a bad connection.
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
				// PerCheckout: a used connection is idle, so the checkout is a ResetSession
				warm := b.conn2(t, scope)
				ctx, cancel := context.WithTimeoutCause(context.WithValue(context.Background(),
					myKey{}, 1), time.Second, cause)
				defer cancel()
				start := time.Now()
				_, err := b.db.ExecContext(ctx, "x")
				for _, want := range []error{semaphore.ErrCapacity, context.DeadlineExceeded,
					cause} {
					if !errors.Is(err, want) {
						t.Errorf("the caller is told %v, want %v", err, want)
					}
				}
				if d := time.Since(start); d != time.Second {
					t.Errorf("the checkout took %v, want 1s", d)
				}
				if f := b.cn.a.Figures(); f.Waiting != 0 {
					t.Errorf("callers left in the queue: %+v", f)
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

// conn2 also leaves a used connection idle beside the checked-out one, if the scope allows that.
func (b *bench) conn2(t *testing.T, scope Scope) (undo func()) {
	t.Helper()
	if scope == PerConnection {
		return func() {}
	}
	b.fleet.mu.Lock()
	b.fleet.capacity++
	b.fleet.mu.Unlock()
	_ = b.conn(t).Close()
	time.Sleep(100 * time.Millisecond) // PassBuddy keeps its permit for a moment
	b.fleet.mu.Lock()
	b.fleet.capacity--
	b.fleet.mu.Unlock()
	return func() {}
}

func TestAcquireTimeout(t *testing.T) {
	uses := map[string]func(b *bench, st *sql.Stmt) error{
		"exec":    func(b *bench, _ *sql.Stmt) error { _, err := b.db.Exec("x"); return err },
		"query":   func(b *bench, _ *sql.Stmt) error { _, err := b.db.Query("x"); return err },
		"begin":   func(b *bench, _ *sql.Stmt) error { _, err := b.db.Begin(); return err },
		"prepare": func(b *bench, _ *sql.Stmt) error { _, err := b.db.Prepare("x"); return err },
		"ping":    func(b *bench, _ *sql.Stmt) error { return b.db.Ping() },
		"conn": func(b *bench, _ *sql.Stmt) error {
			_, err := b.db.Conn(context.Background())
			return err
		},
		"prepared": func(_ *bench, st *sql.Stmt) error { _, err := st.Exec(); return err },
	}
	for _, scope := range scopes {
		for name, use := range uses {
			t.Run(fmt.Sprintf("%v/%s", scope, name), func(t *testing.T) {
				bubble(t, 1, full, Config{Scope: scope, AcquireTimeout: 3 * time.Second},
					func(t *testing.T, b *bench) {
						st, err := b.db.Prepare("x")
						if err != nil {
							t.Fatal(err)
						}
						out := b.conn(t)
						b.conn2(t, scope)
						dials := b.server.dials.Load()
						start := time.Now()
						err = use(b, st)
						if !errors.Is(err, semaphore.ErrCapacity) ||
							errors.Is(err, driver.ErrBadConn) {
							t.Errorf("the caller is told %v, want at capacity", err)
						}
						if d := time.Since(start); d != 3*time.Second {
							t.Errorf("the checkout took %v, want 3s", d)
						}
						if n := b.server.dials.Load() - dials; n != 0 {
							t.Errorf("dialled %d times, want 0", n)
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

// TestRefusalIsOneCheckouts: all callers with context.Background share a context, but not a
// refusal.
func TestRefusalIsOneCheckouts(t *testing.T) {
	var r refusals
	ctx, refused := context.Background(), errors.New("refused")
	r.add(ctx, refused)
	others := make(chan error)
	again := func(ctx context.Context, byConnect bool) error {
		err, _ := r.again(ctx, byConnect)
		return err
	}
	go func() { others <- again(ctx, true) }()
	if err := <-others; err != nil {
		t.Errorf("another goroutine: %v", err)
	}
	if err := again(context.TODO(), true); err != nil {
		t.Errorf("another context: %v", err)
	}
	if again(ctx, false) != refused || again(ctx, true) != refused {
		t.Error("the checkout's own retries are not refused")
	}
	if err := again(ctx, false); err != nil {
		t.Errorf("the checkout after the last retry is refused: %v", err)
	}
}
