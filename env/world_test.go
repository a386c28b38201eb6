package env

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/passbuddy/passbuddy/internal/fakepg"
	"github.com/passbuddy/passbuddy/internal/quiet"
)

func init() { quiet.Redis() }

var ctxb = context.Background()

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is a Redis, and a Postgres that notes what clients ask for.
type world struct {
	t     *testing.T
	redis *miniredis.Miniredis
	port  uint16

	mu      sync.Mutex
	started []map[string]string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: miniredis.RunT(t)}
	pg := &fakepg.Server{OnStart: func(parameters map[string]string) {
		w.mu.Lock()
		w.started = append(w.started, parameters)
		w.mu.Unlock()
	}}
	w.port = pg.Listen(t).Port
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PASSBUDDY_") ||
			strings.HasPrefix(name, "PG") || name == "REDIS_URL" {
			t.Setenv(name, "")
			os.Unsetenv(name)
		}
	}
	t.Setenv("PASSBUDDY_REDIS_URL", "redis://"+w.redis.Addr())
	return w
}

// dsn is that of the server, in pairs, and with the settings given.
func (w *world) dsn(settings ...string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=x dbname=x sslmode=disable "+
		"application_name=app %s", w.port, strings.Join(settings, " "))
}

func (w *world) open(driverName, dsn string) *sql.DB {
	w.t.Helper()
	db, err := sql.Open(driverName, dsn)
	ok(w.t, err)
	w.t.Cleanup(func() { _ = db.Close() })
	return db
}

// sessions counts those of a semaphore in Redis.
func (w *world) sessions(name string) int {
	members, err := w.redis.ZMembers("{passbuddy-" + name + "}:sessions")
	if err != nil {
		return 0
	}
	return len(members)
}

func (w *world) expect(name string, sessions int) {
	w.t.Helper()
	if n := w.sessions(name); n != sessions {
		w.t.Errorf("%d sessions of %q, want %d", n, name, sessions)
	}
}

func (w *world) eventually(what string, yes func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !yes(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

var drivers = []string{"passbuddy", "passbuddy-pgx", "passbuddy-pq"}
