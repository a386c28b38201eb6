package integration

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/passbuddy/passbuddy/env"
	passpool "github.com/passbuddy/passbuddy/pgxpool"
)

// The environment of a program of TestDriverName, beside PassBuddy's own settings.
const (
	programDriver = "TEST_PROGRAM_DRIVER"
	programPool   = "pgxpool" // in place of a driver
	programDSN    = "DATABASE_URL"
	programFollow = "TEST_PROGRAM_USE_PQ"
)

const programGoroutines = 10

// TestProgram is the program, when TestDriverName starts it: it knows a driver's name and a DSN,
// and nothing of semaphores. It makes queries until its standard input ends.
func TestProgram(t *testing.T) {
	driverName := os.Getenv(programDriver)
	if driverName == "" {
		t.Skip("TestDriverName starts it")
	}
	if os.Getenv(programFollow) != "" {
		env.UsePQ(pq.NewConnector)
	}
	ctx := t.Context()
	var query func() error
	if driverName == programPool {
		pool, err := passpool.Open(ctx, os.Getenv(programDSN)+"&pool_max_conns="+
			strconv.Itoa(programGoroutines))
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		query = func() error {
			_, err := pool.Exec(ctx, "select pg_sleep(0.01)")
			return err
		}
	} else {
		db, err := sql.Open(driverName, os.Getenv(programDSN))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		query = func() error {
			_, err := db.ExecContext(ctx, "select pg_sleep(0.01)")
			return err
		}
	}
	var done atomic.Int64
	var ended atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	var wg sync.WaitGroup
	for range programGoroutines {
		wg.Go(func() {
			for !ended.Load() {
				if err := query(); err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if done.Load() == 0 {
		t.Error("no query was made")
	}
}

// A fleet of programs that changed nothing but the name of their driver is capped by its
// environment, and leaves nothing behind. The same programs are not, where the environment says so.
func TestDriverName(t *testing.T) {
	const capacity = 5
	s := startServers(t, 100)
	for _, c := range []struct {
		name, driver string
		processes    int
		extra        []string
		uncapped     bool
	}{
		{name: "pgx", driver: "passbuddy", processes: 3},
		{name: "pgxpool", driver: programPool, processes: 3},
		{name: "pq followed", driver: "passbuddy-pq", processes: 3, extra: []string{programFollow + "=1"}},
		// The end of a backend is an estimate here, so permits better not move between processes.
		{name: "pq", driver: "passbuddy-pq", processes: 1},
		{name: "disabled", driver: "passbuddy", processes: 1, extra: []string{"PASSBUDDY_DISABLE=1"},
			uncapped: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			semaphore := strings.ReplaceAll(c.name, " ", "-")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			seen := s.watch(ctx)
			programs := make([]*exec.Cmd, c.processes)
			ends := make([]io.Closer, c.processes)
			outs := make([]bytes.Buffer, c.processes)
			for i := range programs {
				p := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProgram$", "-test.v")
				p.Env = append(os.Environ(), append(c.extra,
					programDriver+"="+c.driver,
					programDSN+"="+s.postgres.URL()+"&passbuddy_acquire_timeout=1m",
					"PASSBUDDY_REDIS_URL="+s.redis.URL(), "PASSBUDDY_NAME="+semaphore,
					"PASSBUDDY_TTL=1m", // no lease is lost on a slow machine
					fmt.Sprintf("PASSBUDDY_CAPACITY=%d", capacity))...)
				p.Stdout, p.Stderr = &outs[i], &outs[i]
				var err error
				if ends[i], err = p.StdinPipe(); err != nil {
					t.Fatal(err)
				}
				if err := p.Start(); err != nil {
					t.Fatal(err)
				}
				programs[i] = p
			}
			least := capacity
			if c.uncapped {
				least = capacity + 1 // the programs would exceed the capacity
			}
			if last, reached := seen.reaches(least, time.Minute); !reached {
				t.Errorf("%d backends after a minute: there were never %d", last, least)
			}
			time.Sleep(500 * time.Millisecond) // for long enough to exceed it
			for i, p := range programs {
				_ = ends[i].Close()
				if err := p.Wait(); err != nil || !strings.Contains(outs[i].String(),
					"--- PASS: TestProgram") {
					t.Errorf("a program failed: %v\n%s", err, &outs[i])
				}
			}
			sessions := s.redisClient.ZCard(t.Context(), "{passbuddy-"+semaphore+"}:sessions").Val()
			if sessions != 0 {
				t.Errorf("%d sessions are left after the programs have ended", sessions)
			}
			cancel()
			peak, mean := seen.peak(t)
			t.Logf("backends: peak %d, mean %.1f", peak, mean)
			if !c.uncapped && peak > capacity {
				t.Errorf("%d backends, capacity %d", peak, capacity)
			}
			s.nothingLeft(t, semaphore)
		})
	}
}
