package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/backends"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// servers are a Postgres that speaks TLS and SCRAM, and a Redis.
type servers struct {
	t        *testing.T
	postgres *throwaway.Postgres
	redis    *throwaway.Redis
	ca       string // the path of the authority's certificate
	password string
}

func startServers(t *testing.T, maxConnections int) *servers {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: this starts servers")
	}
	ca, err := throwaway.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	s := &servers{t: t, ca: filepath.Join(t.TempDir(), "ca.crt")}
	if err := os.WriteFile(s.ca, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.postgres, err = throwaway.StartPostgres(t.Context(), throwaway.PostgresOptions{
		MaxConnections: maxConnections, TLS: ca,
	}); err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = s.postgres.Stop() })
	if s.redis, err = throwaway.StartRedis(t.Context(), throwaway.RedisOptions{}); err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = s.redis.Stop() })
	u, err := url.Parse(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	s.password, _ = u.User.Password()
	return s
}

func skipIfMissing(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, throwaway.ErrNotFound) {
		t.Skipf("this test needs a real server: %v (make test installs it)", err)
	}
	t.Fatal(err)
}

// client is a program of Postgres's, from the folder of its server or the PATH. The test is skipped
// if it is missing.
func client(t testing.TB, name string) string {
	t.Helper()
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		path := filepath.Join(strings.TrimSpace(string(out)), name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// command is a program that connects through the proxy, over TLS to the server's own certificate,
// with a password that is bound to that TLS channel. Nothing between the two could do that in the
// client's stead.
func (s *servers) command(ctx context.Context, p *setup, name string, args ...string) *exec.Cmd {
	host, port, _ := strings.Cut(p.addr, ":")
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PGHOST="+host, "PGPORT="+port, "PGUSER="+throwaway.Role,
		"PGDATABASE="+throwaway.Role, "PGPASSWORD="+s.password, "PGSSLMODE=verify-full",
		"PGSSLROOTCERT="+s.ca, "PGCHANNELBINDING=require", "PGAPPNAME="+filepath.Base(name))
	return cmd
}

// witness counts the backends of the clients, until it is asked for the most there were.
func (s *servers) witness() (peak func() int) {
	s.t.Helper()
	sampler, err := backends.Connect(s.t.Context(), s.postgres.AdminURL(), 5*time.Millisecond,
		"usename", throwaway.Role)
	if err != nil {
		s.t.Fatal(err)
	}
	stop := sampler.Start(s.t.Context(), time.Now())
	s.t.Cleanup(func() {
		_ = stop()
		sampler.Close()
	})
	return func() (most int) {
		s.t.Helper()
		if err := stop(); err != nil {
			s.t.Fatal(err)
		}
		for _, sample := range sampler.Taken() {
			most = max(most, sample.Open)
		}
		return most
	}
}

// start runs a proxy between the two.
func (s *servers) start(capacity int, change ...func(*setup)) *setup {
	own := func(p *setup) { p.url, p.o.Verbose, p.o.Wait = s.redis.URL(), false, time.Minute }
	return start(s.t, s.postgres.Addr(), capacity, append([]func(*setup){own}, change...)...)
}

// fleet starts Go processes on the same semaphore, that connect to Postgres directly.
func (s *servers) fleet(p *setup, processes, goroutines int) *fleet.Fleet {
	s.t.Helper()
	cfg := fleet.Config{
		PostgresURL: s.postgres.URL(), MaxConns: goroutines, Goroutines: goroutines,
		Operation:   fleet.Operation{Exec: "select pg_sleep(random()*0.01)"},
		Integration: fleet.Pgxpool, Guard: fleet.PassBuddy, RedisURL: s.redis.URL(),
		Semaphore: p.o.Target.Name, Capacity: p.cap, Scope: fleet.ScopeConnection,
		Drain: 5 * time.Second,
	}
	var cfgs []fleet.Config
	for range processes {
		cfgs = append(cfgs, cfg)
	}
	f, err := fleet.Start(s.t.Context(), cfgs)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(f.Kill)
	return f
}

// beside runs f, a load through the proxy, beside a fleet of Go processes which want more than the
// capacity by themselves. It fails if there are ever more backends than the capacity, or if the
// fleet is starved.
func (s *servers) beside(capacity int, f func(ctx context.Context, p *setup)) {
	t := s.t
	t.Helper()
	p := s.start(capacity)
	peak := s.witness()
	goFleet := s.fleet(p, 2, capacity)
	if err := goFleet.Begin(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f(ctx, p)
	reports, err := goFleet.Finish()
	if err != nil {
		t.Fatal(err)
	}
	p.settles(0, 0)
	most := peak()
	for i, r := range reports {
		if r.Operations == 0 || r.Errors() > 0 {
			t.Errorf("Go process %d: %d operations, %d errors: %v", i, r.Operations, r.Errors(),
				r.Failures)
		}
	}
	if most > capacity {
		t.Errorf("%d backends, capacity %d", most, capacity)
	}
	t.Logf("peak of %d backends, capacity %d", most, capacity)
}

// output runs a command, and returns what it wrote.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", filepath.Base(cmd.Path), err, out)
	}
	return string(out)
}

func TestPsqlBesideAFleet(t *testing.T) {
	t.Parallel()
	psql := client(t, "psql")
	s := startServers(t, 50)
	s.beside(6, func(ctx context.Context, p *setup) {
		for range 20 {
			out := output(t, s.command(ctx, p, psql, "-XAtc",
				`select ssl, version >= 'TLSv1.2' from pg_stat_ssl where pid = pg_backend_pid()`))
			if strings.TrimSpace(out) != "t|t" {
				t.Fatalf("psql said %q: is it TLS?", out)
			}
		}
	})
}

// pgbench with -C opens a connection for each transaction. A thread of it connects for one client
// while it holds connections of others, so each client has a thread of its own.
func TestPgbenchBesideAFleet(t *testing.T) {
	t.Parallel()
	pgbench := client(t, "pgbench")
	s := startServers(t, 50)
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("select pg_sleep(0.001);\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.beside(6, func(ctx context.Context, p *setup) {
		for _, args := range [][]string{
			{"-n", "-C", "-c", "8", "-j", "8", "-t", "20", "-f", script},
			{"-n", "-c", "2", "-j", "1", "-T", "2", "-f", script},
		} {
			out := output(t, s.command(ctx, p, pgbench, args...))
			if !strings.Contains(out, "failed transactions: 0 ") {
				t.Errorf("pgbench %v said %s", args, out)
			}
		}
	})
}

// nodeScript is a pool of node-postgres. maxUses has it open a new connection for each 5 queries. A
// query of it can wait for a connection that is being opened while others lie idle, which the proxy
// cannot recall: so they do not lie for long.
const nodeScript = `
const { Pool } = require('pg');
const fs = require('fs');
const e = process.env;
const pool = new Pool({
  host: e.PGHOST, port: +e.PGPORT, user: e.PGUSER, password: e.PGPASSWORD, database: e.PGDATABASE,
  ssl: { ca: fs.readFileSync(e.PGSSLROOTCERT, 'utf8') }, max: 5, maxUses: 5,
  idleTimeoutMillis: 100,
});
async function work() {
  for (let i = 0; i < 10; i++) {
    const r = await pool.query(
      'select ssl, pg_sleep(0.002) from pg_stat_ssl where pid = pg_backend_pid()');
    if (!r.rows[0].ssl) throw new Error('no TLS');
  }
}
Promise.all(Array.from({ length: 10 }, work)).then(() => pool.end())
  .then(() => console.log('done'), (err) => { console.error(err); process.exit(1); });
`

func TestNodeBesideAFleet(t *testing.T) {
	t.Parallel()
	dir, node := installNode(t)
	s := startServers(t, 50)
	s.beside(6, func(ctx context.Context, p *setup) {
		cmd := s.command(ctx, p, node, "script.js")
		cmd.Dir = dir
		if out := output(t, cmd); !strings.Contains(out, "done") {
			t.Errorf("node said %s", out)
		}
	})
}

// Ctrl-C in psql at the cap: the cancel request reaches Postgres, though no permit is free.
func TestCancelAtTheCap(t *testing.T) {
	t.Parallel()
	psql := client(t, "psql")
	s := startServers(t, 20)
	p := s.start(1)
	cmd := s.command(t.Context(), p, psql, "-Xc", "select pg_sleep(60)")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	admin := connectAdmin(t, s)
	eventually(t, patience, func() (bool, string) {
		var n int
		err := admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where state = 'active' and wait_event = 'PgSleep'`).Scan(&n)
		return n == 1, fmt.Sprintf("the query does not run (%v)", err)
	})
	began := time.Now()
	_ = cmd.Process.Signal(os.Interrupt)
	_ = cmd.Wait()
	if took := time.Since(began); took > 20*time.Second ||
		!strings.Contains(out.String(), "canceling statement due to user request") {
		t.Errorf("after %v psql said %q", took, out.String())
	}
	p.settles(0, 0)
}

// A client is killed while its query runs: the permit is held as long as the backend lives.
func TestKilledClientOfABusyBackend(t *testing.T) {
	t.Parallel()
	psql := client(t, "psql")
	s := startServers(t, 20)
	p := s.start(1, func(p *setup) { p.o.Verbose = true })
	cmd := s.command(t.Context(), p, psql, "-Xc", "select pg_sleep(60)")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	admin := connectAdmin(t, s)
	count := func() (n int) {
		if err := admin.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where state = 'active' and wait_event = 'PgSleep'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, patience, func() (bool, string) { return count() == 1, "no query" })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	p.noticed()
	if held, _ := p.counts(); count() != 1 || held != 1 {
		t.Errorf("%d backends, %d held", count(), held)
	}
	if _, err := admin.Exec(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
		where wait_event = 'PgSleep'`); err != nil {
		t.Fatal(err)
	}
	p.settles(0, 0)
}
