package throwaway

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func startPgBouncer(t *testing.T, opts PgBouncerOptions) *PgBouncer {
	t.Helper()
	if _, err := FindPgBouncer(); err != nil {
		t.Skip("this test starts the real PgBouncer (scripts/setup.sh --want pgbouncer installs "+
			"it): ", err)
	}
	opts.Postgres = startPostgres(t, PostgresOptions{})
	b, err := StartPgBouncer(testContext(t), opts)
	skipIfMissing(t, err)
	t.Cleanup(func() {
		if err := b.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return b
}

// In transaction mode two clients share one backend; in session mode the first keeps it.
func TestPgBouncerPoolModes(t *testing.T) {
	for mode, shared := range map[string]bool{"transaction": true, "session": false} {
		wait := "1"
		if shared {
			wait = "60" // a slow machine may need more than a second to open the backend
		}
		b := startPgBouncer(t, PgBouncerOptions{PoolMode: mode, PoolSize: 1,
			Settings: map[string]string{"query_wait_timeout": wait}})
		url := b.URL() + "&default_query_exec_mode=exec"
		var backends [2]int
		var err error
		for i := range backends {
			var conn *pgx.Conn
			if conn, err = pgx.Connect(testContext(t), url); err != nil {
				break
			}
			defer conn.Close(context.Background())
			if err = conn.QueryRow(testContext(t), "select pg_backend_pid()").Scan(
				&backends[i]); err != nil {
				break
			}
		}
		var timeout *pgconn.PgError
		switch {
		case shared && (err != nil || backends[0] != backends[1]):
			t.Errorf("%s: backends %v, %v; want one for both", mode, backends, err)
		case !shared && !(errors.As(err, &timeout) &&
			strings.Contains(timeout.Message, "query_wait_timeout")):
			t.Errorf("%s: backends %v, %v; want the second client to time out", mode,
				backends, err)
		}
	}
}

func TestPgBouncerAsksForThePassword(t *testing.T) {
	b := startPgBouncer(t, PgBouncerOptions{})
	if conn, err := pgx.Connect(testContext(t), strings.Replace(b.URL(), b.postgres.password[Role],
		"wrong", 1)); err == nil {
		conn.Close(context.Background())
		t.Error("a wrong password was accepted")
	}
}

func TestPgBouncerStops(t *testing.T) {
	b := startPgBouncer(t, PgBouncerOptions{})
	conn := connect(t, b.URL())
	folder := b.folder.path
	if b.PID() == 0 {
		t.Error("no process id while it runs")
	}
	for range 2 {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}
	if b.PID() != 0 {
		t.Errorf("process id %d after Stop", b.PID())
	}
	if _, err := os.Stat(folder); !os.IsNotExist(err) {
		t.Errorf("its folder after Stop: %v", err)
	}
	if err := conn.Ping(testContext(t)); err == nil {
		t.Error("a client is still served after Stop")
	}
}

func TestPgBouncerVersion(t *testing.T) {
	version, err := PgBouncerVersion(testContext(t))
	skipIfMissing(t, err)
	if len(strings.Split(version, ".")) < 2 {
		t.Errorf("version %q", version)
	}
}
