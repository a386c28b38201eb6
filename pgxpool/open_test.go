package pgxpool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbuddy/passbuddy/internal/fakepg"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
	"github.com/passbuddy/passbuddy/semaphore"
)

// opens is a Redis, a Postgres, and an environment that names the Redis.
type opens struct {
	t     *testing.T
	redis *miniredis.Miniredis
	port  uint16
}

func newOpens(t *testing.T) *opens {
	t.Helper()
	o := &opens{t: t, redis: miniredis.RunT(t)}
	pg := &fakepg.Server{OnStart: func(parameters map[string]string) {
		for key := range parameters {
			if strings.Contains(key, "passbuddy") {
				t.Errorf("the server is told %q", parameters)
			}
		}
	}}
	o.port = pg.Listen(t).Port
	t.Setenv("PASSBUDDY_REDIS_URL", "redis://"+o.redis.Addr())
	return o
}

func (o *opens) dsn(settings ...string) string {
	return fmt.Sprintf("postgres://x@127.0.0.1:%d/x?sslmode=disable&%s", o.port,
		strings.Join(settings, "&"))
}

func (o *opens) open(settings ...string) *pgxpool.Pool {
	o.t.Helper()
	pool, err := passpool.Open(ctxb, o.dsn(settings...))
	ok(o.t, err)
	o.t.Cleanup(pool.Close)
	return pool
}

func (o *opens) sessions() int {
	members, _ := o.redis.ZMembers("{passbuddy-semaphore}:sessions")
	return len(members)
}

func (o *opens) expect(sessions int) {
	o.t.Helper()
	if n := o.sessions(); n != sessions {
		o.t.Errorf("%d sessions, want %d", n, sessions)
	}
}

func (o *opens) ends() {
	o.t.Helper()
	eventually(o.t, "the session ends", func() bool { return o.sessions() == 0 })
}

// A pool made by Open is capped, shares its session with others, and the last Close ends it.
func TestOpen(t *testing.T) {
	o := newOpens(t)
	a := o.open("passbuddy_capacity=2", "pool_max_conns=9")
	b := o.open("passbuddy_capacity=2", "passbuddy_pool_name=b")
	ok(t, a.Ping(ctxb))
	ok(t, b.Ping(ctxb))
	o.expect(1)
	if max := a.Config().MaxConns; max != 9 {
		t.Errorf("MaxConns is %d", max)
	}
	if s, is := passpool.Stats(b); !is || s.Name != "b" {
		t.Errorf("Stats: %v, %+v", is, s)
	}
	for key := range a.Config().ConnConfig.RuntimeParams {
		t.Errorf("pgx has the parameter %q", key)
	}
	a.Close()
	o.expect(1)
	held, err := b.Acquire(ctxb)
	ok(t, err)
	more, err := b.Acquire(ctxb)
	ok(t, err)
	third := asks(b)
	eventually(t, "a third caller waits", func() bool {
		s, _ := passpool.Stats(b)
		return s.Waiting == 1
	})
	more.Release()
	ok(t, <-third)
	held.Release()
	b.Close()
	o.expect(0) // within Close: a program that returns from main leaves nothing behind
}

func TestOpenEnds(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, o *opens){
		"never used": func(_ *testing.T, o *opens) {
			o.open().Close()
		},
		"background connections alone": func(t *testing.T, o *opens) {
			pool := o.open("pool_min_conns=2")
			eventually(t, "both are open", func() bool { return pool.Stat().IdleConns() == 2 })
			pool.Close()
			o.expect(0)
		},
		"checked out at Close": func(t *testing.T, o *opens) {
			pool := o.open()
			held, err := pool.Acquire(ctxb)
			ok(t, err)
			closed := make(chan struct{})
			go func() { pool.Close(); close(closed) }()
			eventually(t, "it is closed", func() bool { return pool.Ping(ctxb) != nil })
			ok(t, held.Ping(ctxb))
			o.expect(1)
			held.Release()
			<-closed
			o.expect(0)
		},
		"hijacked": func(t *testing.T, o *opens) {
			pool := o.open()
			held, err := pool.Acquire(ctxb)
			ok(t, err)
			conn := held.Hijack()
			pool.Close()
			ok(t, conn.Ping(ctxb))
			o.expect(1)
			ok(t, conn.Close(ctxb))
		},
		"per checkout": func(t *testing.T, o *opens) {
			pool := o.open("passbuddy_scope=checkout")
			ok(t, pool.Ping(ctxb))
			pool.Close()
		},
		"reset before": func(t *testing.T, o *opens) {
			pool := o.open()
			ok(t, pool.Ping(ctxb))
			pool.Reset()
			ok(t, pool.Ping(ctxb))
			o.expect(1)
			pool.Close()
			o.expect(0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOpens(t)
			use(t, o)
			o.ends()
			again := o.open()
			ok(t, again.Ping(ctxb))
			again.Close()
			o.ends()
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	o := newOpens(t)
	for dsn, want := range map[string]string{
		o.dsn("passbuddy_capcity=1"): "did you mean passbuddy_capacity?",
		o.dsn("passbuddy_ttl=1"):     "passbuddy_ttl",
		o.dsn("pool_max_conns=s"):    "pool_max_conns",
		"postgres://u:s3cret@h:x/d":  "DSN",
		"host=h password=s3c ret":    "space",
	} {
		if _, err := passpool.Open(ctxb, dsn); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "s3c") {
			t.Errorf("%q: %v, want %q", dsn, err, want)
		}
	}
	o.expect(0)
	// Two pools that disagree.
	pool := o.open("passbuddy_capacity=2")
	if _, err := passpool.Open(ctxb, o.dsn("passbuddy_capacity=3")); err == nil ||
		!strings.Contains(err.Error(), "passbuddy_capacity") {
		t.Errorf("another capacity: %v", err)
	}
	ok(t, pool.Ping(ctxb))
	pool.Close()
	o.expect(0)
	// No Redis: now, and later there is.
	o.redis.Close()
	if _, err := passpool.Open(ctxb, o.dsn()); !errors.Is(err, semaphore.ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	ctx, cancel := context.WithCancel(ctxb)
	cancel()
	if _, err := passpool.Open(ctx, o.dsn()); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up: %v", err)
	}
	ok(t, o.redis.Restart())
}

func TestOpenDisabled(t *testing.T) {
	o := newOpens(t)
	os.Unsetenv("PASSBUDDY_REDIS_URL")
	t.Setenv("REDIS_URL", "")
	if _, err := passpool.Open(ctxb, o.dsn()); err == nil ||
		!strings.Contains(err.Error(), "PASSBUDDY_REDIS_URL") {
		t.Errorf("without a Redis: %v", err)
	}
	pool := o.open("passbuddy_disable=1", "passbuddy_capacity=1", "pool_max_conns=3")
	for range 3 {
		c, err := pool.Acquire(ctxb)
		ok(t, err)
		t.Cleanup(c.Release)
	}
	if _, is := passpool.Stats(pool); is {
		t.Error("a pool that is disabled has figures")
	}
}
