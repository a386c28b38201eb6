package passbuddy_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

func opener(open func(t *testing.T, s *stack, sem *semaphore.Semaphore,
	cfg passbuddy.Config) *sql.DB) func(*testing.T, *stack, *semaphore.Semaphore,
	passbuddy.Config) *sql.DB {
	return open
}

var registered atomic.Int32

// openers lists the ways to open a wrapped DB, each with what PassBuddy knows of its connections'
// ends.
var openers = map[string]func(t *testing.T, s *stack, sem *semaphore.Semaphore,
	cfg passbuddy.Config) *sql.DB{
	"pgx registered": opener(func(t *testing.T, s *stack, sem *semaphore.Semaphore,
		cfg passbuddy.Config) *sql.DB {
		return openRegistered(t, stdlib.GetDefaultDriver(), s.postgres.URL(), sem, cfg)
	}),
	"pgx connector": opener(func(t *testing.T, s *stack, sem *semaphore.Semaphore,
		cfg passbuddy.Config) *sql.DB {
		c, err := pgx.ParseConfig(s.postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		return passbuddy.OpenDB(stdlib.GetConnector(*c), sem, cfg)
	}),
	"pgx configuration by name": opener(func(t *testing.T, s *stack, sem *semaphore.Semaphore,
		cfg passbuddy.Config) *sql.DB {
		c, err := pgx.ParseConfig(s.postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		return openRegistered(t, stdlib.GetDefaultDriver(), stdlib.RegisterConnConfig(c), sem, cfg)
	}),
	"pq registered": opener(func(t *testing.T, s *stack, sem *semaphore.Semaphore,
		cfg passbuddy.Config) *sql.DB {
		return openRegistered(t, &pq.Driver{}, s.postgres.URL(), sem, cfg)
	}),
	"pq with a Dialer": opener(func(t *testing.T, s *stack, sem *semaphore.Semaphore,
		cfg passbuddy.Config) *sql.DB {
		c, err := pq.NewConnector(s.postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		c.Dialer(&passbuddy.Dialer{})
		return passbuddy.OpenDB(c, sem, cfg)
	}),
}

func openRegistered(t *testing.T, d driver.Driver, dsn string, sem *semaphore.Semaphore,
	cfg passbuddy.Config) *sql.DB {
	name := fmt.Sprintf("passbuddy-%d", registered.Add(1))
	passbuddy.Register(name, d, sem, cfg)
	db, err := sql.Open(name, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxIdleConns(sem.Engine(engine.Seam{}).Capacity())
	return db
}

// TestFailingAfterConnect: stdlib never closes a connection whose AfterConnect fails.
func TestFailingAfterConnect(t *testing.T) {
	s := start(t)
	sem := s.session(t, 2)
	defer sem.Close()
	cfg, err := pgx.ParseConfig(s.postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	boom := errors.New("boom")
	var fail atomic.Bool
	fail.Store(true)
	peak := s.watch(t)
	db := passbuddy.OpenDB(stdlib.GetConnector(*cfg,
		stdlib.OptionAfterConnect(func(context.Context, *pgx.Conn) error {
			if fail.Load() {
				return boom
			}
			return nil
		})), sem, passbuddy.Config{})
	defer db.Close()
	for range 20 {
		if err := db.Ping(); !errors.Is(err, boom) {
			t.Fatal(err)
		}
	}
	fail.Store(false)
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	if n := peak(); n > 2 {
		t.Errorf("%d backends, capacity 2", n)
	}
}

// TestIdleMovesBetweenDrivers: all permits are idle under one driver, some under a prepared
// statement, and another driver's first query is served.
func TestIdleMovesBetweenDrivers(t *testing.T) {
	s := start(t)
	for _, from := range subset.Of(t, 3, slices.Sorted(maps.Keys(openers))) {
		openFrom := openers[from]
		for _, prepared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/prepared %v", from, prepared), func(t *testing.T) {
				if from == "pq registered" && prepared {
					t.Skip("documented limit: without the socket and the DB, the connection is " +
						"given back at its next use")
				}
				if from == "pgx configuration by name" && prepared {
					t.Skip("documented limit, as above")
				}
				semA, semB := s.session(t, 1), s.session(t, 1)
				defer semB.Close()
				defer semA.Close()
				a := openFrom(t, s, semA, passbuddy.Config{})
				defer a.Close()
				b := openers["pgx registered"](t, s, semB, passbuddy.Config{})
				defer b.Close()
				var st *sql.Stmt
				if prepared {
					var err error
					if st, err = a.Prepare("select 1"); err != nil {
						t.Fatal(err)
					}
					defer st.Close()
				} else if err := a.Ping(); err != nil {
					t.Fatal(err)
				}
				peak := s.watch(t)
				for range subset.Length(1, 3) {
					began := time.Now()
					if err := b.Ping(); err != nil {
						t.Fatal(err)
					}
					t.Logf("moved to the other driver in %v", time.Since(began))
					began = time.Now()
					var err error
					if prepared {
						_, err = st.Exec()
					} else {
						err = a.Ping()
					}
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("moved back in %v", time.Since(began))
				}
				if n := peak(); n > 1 {
					t.Errorf("%d backends, capacity 1", n)
				}
			})
		}
	}
}

// TestWarmCheckoutAsksRedisNothing counts the commands on the server.
func TestWarmCheckoutAsksRedisNothing(t *testing.T) {
	s := start(t)
	for _, name := range slices.Sorted(maps.Keys(openers)) {
		t.Run(name, func(t *testing.T) {
			sem, err := semaphore.Open(context.Background(), s.redis.URL(), semaphore.Config{
				Name: t.Name(), Capacity: 2, TTL: time.Hour, Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer sem.Close()
			db := openers[name](t, s, sem, passbuddy.Config{})
			defer db.Close()
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			commands := func() string {
				info, err := sem.Client().Info(context.Background(), "commandstats").Result()
				if err != nil {
					t.Fatal(err)
				}
				var kept []string
				for _, line := range strings.Split(info, "\n") {
					if strings.Contains(line, "evalsha") || strings.Contains(line, "eval:") {
						calls, _, _ := strings.Cut(line, ",")
						kept = append(kept, calls)
					}
				}
				return strings.Join(kept, " ")
			}
			before := commands()
			for range subset.Length(200, 1000) {
				if _, err := db.Exec("select 1"); err != nil {
					t.Fatal(err)
				}
			}
			if after := commands(); after != before {
				t.Errorf("before %s, after %s", before, after)
			}
		})
	}
}
