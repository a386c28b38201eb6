package integration

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The cost of opening and closing a connection: bare, under a permit, and with its backend recorded
// as well (Config.Fence). There are enough permits that no caller waits for the end of a backend.
func BenchmarkConnect(b *testing.B) {
	const most = 20
	s := startServers(b, most+10)
	for _, kind := range kinds {
		for _, run := range []struct {
			name string
			opts *passbuddy.Config
		}{{"bare", nil}, {"passbuddy", &passbuddy.Config{}},
			{"fence", &passbuddy.Config{Fence: true}}} {
			b.Run(kind+"/"+run.name, func(b *testing.B) {
				var sem *semaphore.Semaphore
				if run.opts != nil {
					var err error
					if sem, err = semaphore.Open(b.Context(), s.redis.URL(),
						semaphore.Config{Name: b.Name(), Capacity: most}); err != nil {
						b.Fatal(err)
					}
					defer sem.Close()
				}
				connect, end := s.connector(b, kind, sem, run.opts, most)
				defer end()
				for b.Loop() {
					if err := connect(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// connector opens a pool, and returns how to open one connection of it and to close that.
func (s *servers) connector(b *testing.B, kind string, sem *semaphore.Semaphore,
	opts *passbuddy.Config, most int) (
	connect func(context.Context) error, end func(),
) {
	b.Helper()
	if kind == "sql" {
		db := s.idleDB(b, sem, opts, most)
		return func(ctx context.Context) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			if err := c.Raw(func(any) error { return driver.ErrBadConn }); !errors.Is(err,
				driver.ErrBadConn) {
				return err
			}
			return nil
		}, func() { _ = db.Close() }
	}
	pool := s.pgxPool(b, sem, opts, most)
	return func(ctx context.Context) error {
		c, err := pool.Acquire(ctx)
		if err != nil {
			return err
		}
		defer c.Release()
		return c.Conn().Close(ctx)
	}, pool.Close
}
