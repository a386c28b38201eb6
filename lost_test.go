package passbuddy

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// TestLostLeaseIsNamed: an operation on a checked-out connection whose lease was lost fails with an
// error that names the loss.
func TestLostLeaseIsNamed(t *testing.T) {
	ctx := context.Background()
	begin := func(t *testing.T, b *bench) *sql.Tx {
		tx, err := b.db.Begin()
		must(t)(tx, err)
		return tx
	}
	for name, use := range map[string]func(t *testing.T, b *bench, lose func()) error{
		"Tx.Exec": func(t *testing.T, b *bench, lose func()) error {
			tx := begin(t, b)
			defer tx.Rollback()
			lose()
			_, err := tx.Exec("x")
			return err
		},
		"Tx.Query": func(t *testing.T, b *bench, lose func()) error {
			tx := begin(t, b)
			defer tx.Rollback()
			lose()
			_, err := tx.Query("x")
			return err
		},
		"Tx.Prepare": func(t *testing.T, b *bench, lose func()) error {
			tx := begin(t, b)
			defer tx.Rollback()
			lose()
			_, err := tx.Prepare("x")
			return err
		},
		"Conn.Exec": func(t *testing.T, b *bench, lose func()) error {
			c := b.conn(t)
			defer c.Close()
			lose()
			_, err := c.ExecContext(ctx, "x")
			return err
		},
		"Conn.BeginTx": func(t *testing.T, b *bench, lose func()) error {
			c := b.conn(t)
			defer c.Close()
			lose()
			_, err := c.BeginTx(ctx, nil)
			return err
		},
		"in the middle of Conn.Exec": func(t *testing.T, b *bench, lose func()) error {
			c := b.conn(t)
			defer c.Close()
			b.server.onExec = func(context.Context, string) error {
				lose()
				return driver.ErrBadConn
			}
			_, err := c.ExecContext(ctx, "x")
			return err
		},
	} {
		for _, scope := range scopes {
			t.Run(name+"/"+scope.String(), func(t *testing.T) {
				bubble(t, 2, full, Config{Scope: scope}, func(t *testing.T, b *bench) {
					err := use(t, b, func() { b.fleet.lose(t); synctest.Wait() })
					if !errors.Is(err, semaphore.ErrLost) ||
						!strings.Contains(err.Error(), "lease lost") {
						t.Errorf("the caller is told %v, want ErrLost in the words of the library",
							err)
					}
					b.server.onExec = nil
					time.Sleep(time.Minute)
					must(t)(nil, b.db.Ping())
				})
			})
		}
	}
}

// TestLostLeaseIsRetried: an operation of a DB that finds its connection's lease lost has not
// begun, so database/sql tries it again.
func TestLostLeaseIsRetried(t *testing.T) {
	bubble(t, 2, full, Config{}, func(t *testing.T, b *bench) {
		must(t)(nil, b.db.Ping())
		losses := 0
		b.server.onReset = func(*fakeConn) error {
			if losses++; losses == 1 {
				b.fleet.lose(t)
				synctest.Wait()
			}
			return nil
		}
		must(t)(b.db.Exec("x"))
		if losses == 0 {
			t.Error("bug in the test: no lease was lost")
		}
	})
}
