package backend_test

import (
	"context"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/backend"
)

// suspect returns the facts that a pool has about c's backend.
func suspect(c *pgx.Conn) *allotment.Suspect {
	pc := c.PgConn()
	return &allotment.Suspect{PID: pc.PID(), Since: time.Now(),
		Addr: pc.Conn().RemoteAddr().String()}
}

func TestEndSuspects(t *testing.T) {
	pg := server(t)
	admin := connect(t, pg.AdminURL())
	if _, err := admin.Exec(t.Context(), "create role other login password 'other'"); err != nil {
		t.Fatal(err)
	}
	self := connect(t, pg.URL())
	end := func(suspects ...*allotment.Suspect) []bool {
		t.Helper()
		gone, err := backend.EndSuspects(t.Context(), self.PgConn(), suspects)
		if err != nil {
			t.Fatal(err)
		}
		return gone
	}

	t.Run("its own", func(t *testing.T) {
		idle, busy := connect(t, pg.URL()), connect(t, pg.URL())
		never, working := suspect(idle), suspect(busy)
		never.PID = 4000000
		ended := sleeps(t, admin, busy)
		if gone := end(suspect(idle), working, never); !slices.Equal(gone,
			[]bool{true, true, true}) {
			t.Errorf("gone: %v", gone)
		}
		if err := <-ended; err == nil || alive(idle) {
			t.Errorf("the busy one: %v; the idle one alive: %v", err, alive(idle))
		}
	})
	t.Run("spared", func(t *testing.T) {
		u, err := url.Parse(pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("other", "other")
		other, elsewhere, younger := connect(t, u.String()), connect(t, pg.URL()), connect(t,
			pg.URL())
		mine := connect(t, pg.URL())
		there := suspect(elsewhere)
		there.Addr = "192.0.2.1:5432"
		before := suspect(younger)
		before.Since = before.Since.Add(-time.Hour) // another backend had the pid then
		exact := func(c *pgx.Conn, server, start int64) *allotment.Suspect {
			b, err := backend.Of(t.Context(), c.PgConn())
			if err != nil {
				t.Fatal(err)
			}
			b.Server += server
			b.Start += start
			s := suspect(c)
			s.Addr, s.Recorded = "192.0.2.1:5432", b
			return s
		}
		hostTwo, restarted, reused := connect(t, pg.URL()), connect(t, pg.URL()), connect(t,
			pg.URL())
		if gone := end(exact(restarted, 1, 0), suspect(self), exact(hostTwo, 0, 0),
			exact(reused, 0, 1)); !slices.Equal(gone, []bool{false, false, true, true}) {
			t.Errorf("recorded backends are reported as gone: %v", gone)
		}
		for name, c := range map[string]*pgx.Conn{
			"one of a server that was restarted since": restarted,
			"one whose pid was used again":             reused} {
			if !alive(c) {
				t.Errorf("%s was ended", name)
			}
		}
		if alive(hostTwo) {
			t.Error("a recorded backend that was reached by another address lives on")
		}
		began := time.Now()
		gone := end(suspect(other), there, before, suspect(self), suspect(mine))
		if !slices.Equal(gone, []bool{false, false, false, false, true}) {
			t.Errorf("gone: %v", gone)
		}
		for name, c := range map[string]*pgx.Conn{
			"another role's": other, "another server's": elsewhere, "a younger one": younger,
			"its own": self,
		} {
			if !alive(c) {
				t.Errorf("%s was ended", name)
			}
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("waited %v for backends that it must not end, want at most 10s", took)
		}
	})
	t.Run("behind a pooler", func(t *testing.T) {
		pc, err := pgconn.Connect(t.Context(), pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		if err := pc.SyncConn(t.Context()); err != nil { // see TestOfBehindAPooler
			t.Fatal(err)
		}
		h, err := pc.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		h.PID++
		if pc, err = pgconn.Construct(h); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = pc.Close(context.Background()) }()
		c := connect(t, pg.URL())
		never := suspect(c)
		never.PID = 4000000
		gone, err := backend.EndSuspects(t.Context(), pc, []*allotment.Suspect{suspect(c), never})
		if err != nil || gone[0] || gone[1] || !alive(c) {
			t.Errorf("gone %v, alive %v, %v: a pooler's pids say nothing", gone, alive(c), err)
		}
	})
}
