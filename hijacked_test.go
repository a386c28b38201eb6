package passbuddy

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	world "github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A caller takes the socket out of a connection of the DB (PgConn.Hijack), and returns what is
// left. The backend lives on, under its permit, until the socket is closed. It holds up neither
// other callers nor the DB's Close.
func TestPgConnHijackedLivesOn(t *testing.T) {
	for _, scope := range []Scope{PerConnection, PerCheckout} {
		t.Run(scope.String(), func(t *testing.T) {
			world.Run(t, func(t *testing.T, b *world.World) {
				ctx := context.Background()
				client, _ := b.Client()
				defer client.Close()
				sem, err := semaphore.New(ctx, client, semaphore.Config{
					Capacity: 2, Logger: new(world.Log).Logger(),
				})
				must(t)(nil, err)
				defer sem.Close()
				config := fakepg.Config(t)
				config.DialFunc = new(fakepg.Server).Dial
				db := OpenDB(stdlib.GetConnector(*config), sem, Config{Scope: scope})

				var h *pgconn.HijackedConn
				c := connOf(t, db)
				must(t)(nil, c.Raw(func(dc any) (err error) {
					pc := dc.(RawConn).Raw().(*stdlib.Conn).Conn().PgConn()
					must(t)(nil, pc.SyncConn(ctx))
					// This read fails, but pgx does not close the connection for it.
					short, cancel := context.WithTimeout(ctx, time.Second)
					defer cancel()
					if err := pc.WaitForNotification(short); !pgconn.Timeout(err) {
						t.Errorf("bug in the test: %v", err)
					}
					h, err = pc.Hijack()
					return err
				}))
				must(t)(nil, c.Close())
				time.Sleep(2 * time.Minute) // pgx waits 15s for a close
				must(t)(nil, db.PingContext(ctx))
				if s := statsOf(t, db); s.InUse != 1 || s.Closing != 0 || s.LongUse != 1 {
					t.Errorf("%d in use, %d over a minute, %d closing; want 1, 1, 0",
						s.InUse, s.LongUse, s.Closing)
				}
				began := time.Now()
				must(t)(nil, db.Close())
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("DB.Close took %v: it waited for the hijacked connection", took)
				}
				time.Sleep(time.Second) // a permit that covered the ping is kept for a moment
				must(t)(nil, h.Conn.SetDeadline(time.Now().Add(time.Minute)))
				message := []byte{'Q', 0, 0, 0, 6, 'x', 0}
				if _, err := h.Conn.Write(message); err != nil {
					t.Fatalf("the socket cannot be used: %v", err)
				} else if _, err := h.Conn.Read(message); err != nil || message[0] != 'C' {
					t.Fatalf("the server answers with %q, %v", message, err)
				}
				if n := sem.Stats().Held; n != 1 {
					t.Errorf("%d permits are held, want that of the hijacked connection", n)
				}
				must(t)(nil, h.Conn.Close())
				time.Sleep(time.Minute)
				if n := sem.Stats().Held; n != 0 {
					t.Errorf("%d permits are held after the close", n)
				}
			})
		})
	}
}
