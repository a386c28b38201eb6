package throwaway

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) != "" {
		orphanMain()
	}
	goleak.VerifyTestMain(m,
		// go-redis checks once a second whether a server that refused it is back, and only then
		// whether its client is closed.
		goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"),
	)
}

func itoa(n int) string { return strconv.Itoa(n) }

func testContext(t *testing.T) context.Context {
	t.Helper()
	// Sentinels take no decision for half a minute after a stall of two seconds.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// skipIfMissing skips the test where a server is not installed, and says so.
func skipIfMissing(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrNotFound) {
		t.Skip("this test starts the real server (make test installs it): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func startPostgres(t *testing.T, opts PostgresOptions) *Postgres {
	t.Helper()
	p, err := StartPostgres(testContext(t), opts)
	skipIfMissing(t, err)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return p
}

func startRedis(t *testing.T, opts RedisOptions) *Redis {
	t.Helper()
	r, err := StartRedis(testContext(t), opts)
	skipIfMissing(t, err)
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error("Stop:", err)
		}
	})
	return r
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func setting(t *testing.T, conn *pgx.Conn, name string) (value string) {
	t.Helper()
	if err := conn.QueryRow(testContext(t), "select current_setting($1)",
		name).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestPostgresRolesAndSettings(t *testing.T) {
	p := startPostgres(t, PostgresOptions{MaxConnections: 12,
		Settings: map[string]string{"work_mem": "5MB"}})

	conn := connect(t, p.URL())
	for name, want := range map[string]string{
		"max_connections": "12", "work_mem": "5MB", "is_superuser": "off",
		"session_authorization": Role,
		"port":                  itoa(p.Port()),
	} {
		if got := setting(t, conn, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, err := conn.Exec(testContext(t), "create table mine (id int)"); err != nil {
		t.Error("the ordinary role owns its database, but:", err)
	}
	if got := setting(t, connect(t, p.AdminURL()), "is_superuser"); got != "on" {
		t.Errorf("is_superuser is %q for AdminURL", got)
	}

	_, err := pgx.Connect(testContext(t), strings.Replace(p.URL(), p.password[Role], "wrong", 1))
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != "28P01" { // invalid_password
		t.Errorf("a wrong password: %v", err)
	}
}

func TestPostgresServersAreSeparate(t *testing.T) {
	a, b := startPostgres(t, PostgresOptions{}), startPostgres(t, PostgresOptions{})
	if a.Port() == b.Port() || a.folder.path == b.folder.path {
		t.Fatal("two servers share a port or a folder")
	}
	if got := setting(t, connect(t, b.URL()), "max_connections"); got != "100" {
		t.Errorf("max_connections is %q by default", got)
	}
}

func TestPostgresRestartAndKillKeepData(t *testing.T) {
	ctx := testContext(t)
	p := startPostgres(t, PostgresOptions{})
	url := p.URL()
	for _, end := range []struct {
		name string
		do   func()
	}{
		{"Restart of a running server", func() {}},
		{"Kill", p.Kill},
		{"Kill twice", func() { p.Kill(); p.Kill() }},
	} {
		conn := connect(t, url)
		if _, err := conn.Exec(ctx, "create table if not exists kept (id int)"); err != nil {
			t.Fatal(err)
		}
		end.do()
		if err := p.Restart(ctx); err != nil {
			t.Fatalf("%s: %v", end.name, err)
		}
		if p.URL() != url {
			t.Errorf("%s: URL changed", end.name)
		}
		if err := conn.Ping(ctx); err == nil {
			t.Errorf("%s: a session lived on", end.name)
		}
		if _, err := connect(t, url).Exec(ctx, "select * from kept"); err != nil {
			t.Errorf("%s: %v", end.name, err)
		}
	}
}

func TestPostgresStop(t *testing.T) {
	p := startPostgres(t, PostgresOptions{})
	conn := connect(t, p.URL())
	server := p.server
	for range 2 {
		if err := p.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-server.gone:
	default:
		t.Error("the server outlived Stop")
	}
	if err := conn.Ping(testContext(t)); err == nil {
		t.Error("a session outlived Stop")
	}
	if _, err := os.Stat(p.folder.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder after Stop: %v", err)
	}
	if err := p.Restart(testContext(t)); err == nil {
		t.Error("Restart after Stop succeeded")
	}
}

func TestPostgresThatCannotStartSaysWhy(t *testing.T) {
	if _, err := FindPostgres(testContext(t)); errors.Is(err, ErrNotFound) {
		t.Skip("this test starts the real server (make test installs it): ", err)
	}
	dir, err := os.MkdirTemp("", "passbuddy-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	// The server's account must be able to pass, if we are root.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)

	_, err = StartPostgres(testContext(t),
		PostgresOptions{Settings: map[string]string{"work_mem": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "work_mem") {
		t.Errorf("error %v does not name the setting", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRedis(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{Password: "open sesame"})
	opts, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	defer client.Close()
	if err := client.Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	stranger := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer stranger.Close()
	if err := stranger.Get(ctx, "key").Err(); err == nil ||
		!strings.Contains(err.Error(), "NOAUTH") {
		t.Errorf("without the password: %v", err)
	}

	addr := r.Addr()
	for name, end := range map[string]func(){"Restart": func() {}, "Kill": r.Kill} {
		end()
		if err := r.Restart(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if r.Addr() != addr {
			t.Errorf("%s: address changed", name)
		}
		if n, err := client.Exists(ctx, "key").Result(); n != 0 || err != nil {
			t.Errorf("%s: %d keys survived, %v", name, n, err)
		}
	}

	for range 2 {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("the server outlived Stop")
	}
	if err := r.Restart(ctx); err == nil {
		t.Error("Restart after Stop succeeded")
	}
}

func TestRedisArgsOverride(t *testing.T) {
	ctx := testContext(t)
	r := startRedis(t, RedisOptions{Args: []string{"--appendonly", "yes", "--appendfsync",
		"always"}})
	client := redis.NewClient(&redis.Options{Addr: r.Addr()})
	defer client.Close()
	if err := client.Set(ctx, "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	if err := r.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := client.Get(ctx, "key").Result(); got != "value" || err != nil {
		t.Errorf("after a crash with an append-only file: %q, %v", got, err)
	}
}

func TestStartTriesAnotherPort(t *testing.T) {
	r := startRedis(t, RedisOptions{})
	other := &Redis{program: r.program, folder: r.folder, kind: plainRedis, port: r.port}
	if err := other.start(testContext(t)); !errors.Is(err, errPortTaken) {
		t.Errorf("Redis on a port in use: %v", err)
	}
	p := startPostgres(t, PostgresOptions{})
	p.Kill()
	p.port = r.port
	if err := p.Restart(testContext(t)); !errors.Is(err, errPortTaken) {
		t.Errorf("PostgreSQL on a port in use: %v", err)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	defer func(dirs, programs []string) { serverDirs, redisPrograms = dirs, programs }(serverDirs,
		redisPrograms)
	serverDirs, redisPrograms = nil, []string{"redis-server"}

	if _, err := StartPostgres(testContext(t), PostgresOptions{}); !errors.Is(err, ErrNotFound) ||
		!strings.Contains(err.Error(), "initdb") {
		t.Errorf("PostgreSQL: %v", err)
	}
	if _, err := StartRedis(testContext(t), RedisOptions{}); !errors.Is(err, ErrNotFound) ||
		!strings.Contains(err.Error(), "redis-server") {
		t.Errorf("Redis: %v", err)
	}
}
