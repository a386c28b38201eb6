package backend_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/backend"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

func server(t *testing.T) *throwaway.Postgres {
	t.Helper()
	pg, err := throwaway.StartPostgres(t.Context(), throwaway.PostgresOptions{})
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skipf("this test needs a real server: %v (make test installs it)", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Stop() })
	return pg
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func of(t *testing.T, c *pgx.Conn) allotment.Backend {
	t.Helper()
	b, err := backend.Of(t.Context(), c.PgConn())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sleeps has c sleep, and returns once it does. What ends the call comes on the channel.
func sleeps(t *testing.T, admin, c *pgx.Conn) <-chan error {
	t.Helper()
	ended := make(chan error, 1) // within a minute
	pid := c.PgConn().PID()
	go func() {
		_, err := c.Exec(context.Background(), "select pg_sleep(60)")
		ended <- err
	}()
	for running := false; !running; time.Sleep(time.Millisecond) {
		if err := admin.QueryRow(t.Context(), "select exists (select from pg_stat_activity "+
			"where pid = $1 and wait_event = 'PgSleep')", pid).Scan(&running); err != nil {
			t.Fatal(err)
		}
		if len(ended) > 0 {
			t.Fatal("the query ended before it was seen to run: ", <-ended)
		}
	}
	return ended
}

func alive(c *pgx.Conn) bool { return c.Ping(context.Background()) == nil }

func TestEnd(t *testing.T) {
	pg := server(t)
	admin := connect(t, pg.AdminURL())
	if _, err := admin.Exec(t.Context(),
		"create role other login password 'other'; create role lesser; grant lesser to "+
			throwaway.Role); err != nil {
		t.Fatal(err)
	}
	self := connect(t, pg.URL())

	t.Run("its own", func(t *testing.T) {
		idle, busy := connect(t, pg.URL()), connect(t, pg.URL())
		of1, of2 := of(t, idle), of(t, busy)
		if of1.PID != idle.PgConn().PID() ||
			time.Since(time.UnixMicro(of1.Start)).Abs() > time.Minute {
			t.Errorf("backend %v", of1)
		}
		ended := sleeps(t, admin, busy)
		never := allotment.Backend{PID: 4000000, Start: of1.Start}
		began := time.Now()
		if gone := backend.End(t.Context(), self.PgConn(),
			[]allotment.Backend{of1, of2, never}); !slices.Equal(gone, []bool{true, true, true}) {
			t.Errorf("gone: %v", gone)
		}
		t.Logf("two ended in %v", time.Since(began))
		var e *pgconn.PgError
		if err := <-ended; !errors.As(err, &e) || e.Code != "57P01" {
			t.Errorf("the busy one: %v", err)
		}
		if alive(idle) {
			t.Error("the idle backend lives on")
		}
	})
	t.Run("a pid used again", func(t *testing.T) {
		c := connect(t, pg.URL())
		b := of(t, c)
		before := allotment.Backend{PID: b.PID, Start: b.Start - 1}
		if gone := backend.End(t.Context(), self.PgConn(), []allotment.Backend{before}); !gone[0] {
			t.Error("the former backend with the pid is not reported as gone")
		}
		if !alive(c) {
			t.Error("End ended the backend that has the pid now")
		}
	})
	t.Run("itself", func(t *testing.T) {
		began := time.Now()
		if gone := backend.End(t.Context(), self.PgConn(),
			[]allotment.Backend{of(t, self)}); gone[0] || !alive(self) {
			t.Errorf("gone %v, alive %v", gone, alive(self))
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("End took %v, longer than its bound", took)
		}
	})
	t.Run("another role's", func(t *testing.T) {
		u, err := url.Parse(pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("other", "other")
		for name, c := range map[string]*pgx.Conn{"other": connect(t, u.String()),
			"superuser": connect(t, pg.AdminURL())} {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			gone := backend.End(ctx, self.PgConn(), []allotment.Backend{of(t, c)})
			cancel()
			if gone[0] || !alive(c) {
				t.Errorf("%s: gone %v, alive %v", name, gone, alive(c))
			}
		}
		// A superuser could end it.
		c := connect(t, pg.URL())
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if gone := backend.End(ctx, admin.PgConn(), []allotment.Backend{of(t, c)}); gone[0] ||
			!alive(c) {
			t.Error("a superuser ended another role's backend")
		}
	})
	t.Run("in another role", func(t *testing.T) {
		set := connect(t, pg.URL())
		if _, err := set.Exec(t.Context(), "set role lesser"); err != nil {
			t.Fatal(err)
		}
		c := connect(t, pg.URL())
		if gone := backend.End(t.Context(), set.PgConn(),
			[]allotment.Backend{of(t, c)}); !gone[0] || alive(c) {
			t.Errorf("gone %v, alive %v", gone, alive(c))
		}
		var role string
		if err := set.QueryRow(t.Context(), "select current_user").Scan(&role); err != nil ||
			role != "lesser" {
			t.Errorf("the user's role is now %q, %v", role, err)
		}
	})
	t.Run("broken connection", func(t *testing.T) {
		dead := connect(t, pg.URL())
		c := connect(t, pg.URL())
		b := of(t, c)
		_ = dead.Close(t.Context())
		if gone := backend.End(t.Context(), dead.PgConn(), []allotment.Backend{b}); gone[0] {
			t.Error("reported as gone over a closed connection")
		}
	})
}

// Gone ends nothing, and a backend that it cannot see is not gone.
func TestGone(t *testing.T) {
	pg := server(t)
	admin := connect(t, pg.AdminURL())
	if _, err := admin.Exec(t.Context(), "create role other login password 'other'"); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("other", "other")
	self, lives, others, ends := connect(t, pg.URL()), connect(t, pg.URL()), connect(t,
		u.String()), connect(t, pg.URL())
	here, before, there := of(t, lives), of(t, lives), of(t, ends)
	before.Start--
	ended, elsewhere := there, there
	elsewhere.Server++
	all := []allotment.Backend{here, before, of(t, others), of(t, self), ended, elsewhere}
	look := func(by *pgx.Conn) []bool { return backend.Gone(t.Context(), by.PgConn(), all) }
	if gone := look(self); !slices.Equal(gone, []bool{false, true, false, false, false, false}) {
		t.Errorf("gone: %v, but all live", gone)
	}
	if err := ends.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for !look(self)[4] {
		if time.Now().After(deadline) {
			t.Fatal("the closed backend is not reported as gone")
		}
	}
	if look(self)[5] {
		t.Error("reported as gone by a server that never had it")
	}
	if !alive(lives) || !alive(others) {
		t.Error("Gone ended a backend")
	}
	if gone := look(ends); slices.Contains(gone, true) {
		t.Errorf("reported as gone over a closed connection: %v", gone)
	}
	if gone := backend.Gone(t.Context(), self.PgConn(), nil); len(gone) != 0 {
		t.Errorf("gone: %v, of no backends", gone)
	}
}

// A pooler gives its clients pids of its own.
func TestOfBehindAPooler(t *testing.T) {
	pg := server(t)
	c, err := pgconn.Connect(t.Context(), pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	// pgx may read in the background, after a write that took long
	if err := c.SyncConn(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := c.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	h.PID++
	if c, err = pgconn.Construct(h); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if _, err := backend.Of(t.Context(), c); err == nil ||
		!strings.Contains(err.Error(), "pooler") ||
		!strings.Contains(err.Error(), fmt.Sprint(h.PID)) {
		t.Errorf("%v, want an error that names the pooler and its pid", err)
	}
}
