package fleet

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The tests' program is also the fleet's workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == WorkerCommand {
		os.Exit(RunWorker())
	}
	goleak.VerifyTestMain(m)
}

// closedPort returns an address on which no process listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fleetConfig(t *testing.T) Config {
	return Config{
		PostgresURL: "postgres://nobody@" + closedPort(t) + "/none?sslmode=disable",
		MaxConns:    3, Goroutines: 3, Operation: Operation{Exec: "select 1"},
		Scope: ScopeConnection, Integration: Pgxpool, Drain: time.Second,
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestFleetReportsAndEnds(t *testing.T) {
	for _, integration := range []string{Pgxpool, SQL} {
		cfg := fleetConfig(t)
		cfg.Integration = integration
		f, err := Start(testContext(t), []Config{cfg, cfg})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Begin(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "failures of both workers", func() bool {
			return f.members[0].report().Failed > 0 && f.members[1].report().Failed > 0
		})
		reports, err := f.Finish()
		if err != nil || len(reports) != 2 {
			t.Fatalf("%s: %d final reports, %v", integration, len(reports), err)
		}
		for _, r := range reports {
			if r.Operations != 0 || r.Refused != 0 || r.Failed == 0 || r.Served != 0 ||
				len(r.Failures) == 0 {
				t.Errorf("%s, without a server to connect to: %+v", integration, r)
			}
		}
		expectEnded(t, f)
		f.Kill() // a second call does no harm
	}
}

func TestWorkersEndWithTheirParent(t *testing.T) {
	f, err := Start(testContext(t), []Config{fleetConfig(t), fleetConfig(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Kill()
	if err := f.members[0].stdin.Close(); err != nil { // before the start
		t.Fatal(err)
	}
	if err := f.Begin(); err == nil {
		t.Error("Begin did not notice that a worker is gone")
	}
	if err := f.members[1].stdin.Close(); err != nil {
		t.Fatal(err)
	}
	for _, m := range f.members {
		select {
		case <-m.ended:
		case <-testContext(t).Done():
			t.Fatal("a worker outlived its parent's end of the pipe")
		}
	}
	if _, err := f.Finish(); err == nil {
		t.Error("Finish did not notice that final reports are missing")
	}
}

func TestFleetThatCannotStartSaysWhy(t *testing.T) {
	cfg := fleetConfig(t)
	cfg.Guard, cfg.RedisURL, cfg.Capacity, cfg.Semaphore = PassBuddy, "redis://"+closedPort(t)+
		"/0", 1, "demo"
	_, err := Start(testContext(t), []Config{cfg, cfg})
	if err == nil || !strings.Contains(err.Error(), "Redis is unavailable") {
		t.Errorf("error %v does not name Redis", err)
	}
}

func TestFleetStartIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, []Config{fleetConfig(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func expectEnded(t *testing.T, f *Fleet) {
	t.Helper()
	for _, m := range f.members {
		select {
		case <-m.ended:
		default:
			t.Errorf("worker %d still runs", m.cmd.Process.Pid)
		}
	}
}

// waitFor polls for what another process does without any signal.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for ctx := testContext(t); !done(); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatal("no " + what)
		}
	}
}
