package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// The tests' program is also the fleet's workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerCommand {
		os.Exit(runWorker())
	}
	goleak.VerifyTestMain(m)
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fleetConfig(t *testing.T) workerConfig {
	return workerConfig{
		PostgresURL: "postgres://nobody@" + closedPort(t) + "/none?sslmode=disable",
		Goroutines:  3, Query: "select 1", Scope: scopeConnection, Integration: integrationPgxpool,
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestFleetReportsAndEnds(t *testing.T) {
	for _, integration := range []string{integrationPgxpool, integrationSQL} {
		cfg := fleetConfig(t)
		cfg.Integration = integration
		f, err := startFleet(testContext(t), 2, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.begin(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "failures of both workers", func() bool {
			return f.members[0].report().Failed > 0 && f.members[1].report().Failed > 0
		})
		reports, err := f.finish()
		if err != nil || len(reports) != 2 {
			t.Fatalf("%s: %d final reports, %v", integration, len(reports), err)
		}
		for _, r := range reports {
			if r.Operations != 0 || r.Refused != 0 || r.Failed == 0 || r.Served != 0 || len(r.Failures) == 0 {
				t.Errorf("%s, with nobody to connect to: %+v", integration, r)
			}
		}
		expectEnded(t, f)
		f.kill() // once more does no harm
	}
}

func TestWorkersEndWithTheirParent(t *testing.T) {
	f, err := startFleet(testContext(t), 2, fleetConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.kill()
	if err := f.members[0].stdin.Close(); err != nil { // before the start
		t.Fatal(err)
	}
	if err := f.begin(); err == nil {
		t.Error("begin did not notice a worker that is gone")
	}
	if err := f.members[1].stdin.Close(); err != nil {
		t.Fatal(err)
	}
	for _, m := range f.members {
		select {
		case <-m.ended:
		case <-testContext(t).Done():
			t.Fatal("a worker outlives its parent's end of the pipe")
		}
	}
	if _, err := f.finish(); err == nil {
		t.Error("finish did not notice that final reports are missing")
	}
}

func TestFleetThatCannotStartSaysWhy(t *testing.T) {
	cfg := fleetConfig(t)
	cfg.RedisURL, cfg.Capacity, cfg.Semaphore = "redis://"+closedPort(t)+"/0", 1, "demo"
	_, err := startFleet(testContext(t), 2, cfg)
	if err == nil || !strings.Contains(err.Error(), "Redis is unavailable") {
		t.Errorf("error %v does not tell of Redis", err)
	}
}

func TestFleetStartIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := startFleet(ctx, 2, fleetConfig(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func expectEnded(t *testing.T, f *fleet) {
	t.Helper()
	for _, m := range f.members {
		select {
		case <-m.ended:
		default:
			t.Errorf("worker %d is still there", m.cmd.Process.Pid)
		}
	}
}

// waitFor waits for what another process does, and of which nothing tells.
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

// The whole demo, small: the fleet without PassBuddy runs into the server's limit, the one with it keeps the cap.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this runs a fleet of processes for some seconds")
	}
	if _, err := throwaway.FindPostgres(t.Context()); err != nil {
		t.Skip("the demo needs a PostgreSQL server (make test installs it): ", err)
	}
	for _, integration := range []string{integrationPgxpool, integrationSQL} {
		t.Run(integration, func(t *testing.T) {
			svg := filepath.Join(t.TempDir(), "demo.svg")
			o, err := parseOptions([]string{"-processes", "2", "-goroutines", "8", "-cap", "3", "-duration", "1s",
				"-query", "select pg_sleep(0.005)", "-integration", integration, "-svg", svg}, &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			var out, status bytes.Buffer
			if err := demo(testContext(t), o, &out, &status); err != nil {
				t.Errorf("demo: %v\n%s\n%s", err, &out, &status)
			}
			for _, part := range []string{"peak of backends (cap 3)", "With PassBuddy: never more than 3 backends"} {
				if !strings.Contains(out.String(), part) {
					t.Errorf("no %q in:\n%s", part, &out)
				}
			}
			for line := range strings.Lines(out.String()) {
				if f := strings.Fields(line); len(f) == 6 && strings.HasPrefix(line, "   failed: too many clients") && (f[4] == "0" || f[5] != "0") {
					t.Errorf("want refusals without PassBuddy and none with it: %s", line)
				}
			}
			document, err := os.ReadFile(svg)
			if err != nil {
				t.Fatal(err)
			}
			if !hasText(parseSVG(t, document), "cap 3") {
				t.Error("the picture has no cap line")
			}
		})
	}
}

func TestDemoIsInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this runs a fleet of processes")
	}
	if _, err := throwaway.FindPostgres(t.Context()); err != nil {
		t.Skip("the demo needs a PostgreSQL server (make test installs it): ", err)
	}
	o, err := parseOptions([]string{"-processes", "2", "-goroutines", "4", "-cap", "2", "-duration", "1h",
		"-svg", filepath.Join(t.TempDir(), "demo.svg")}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	status := &signalWriter{written: make(chan struct{}, 1)} // the first line of progress: the fleet runs
	ended := make(chan error, 1)
	go func() { ended <- demo(ctx, o, &bytes.Buffer{}, status) }()
	select {
	case <-status.written:
	case err := <-ended:
		t.Fatalf("ended by itself: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("demo: %v", err)
	}
}

type signalWriter struct{ written chan struct{} }

func (w *signalWriter) Write(p []byte) (int, error) {
	select {
	case w.written <- struct{}{}:
	default:
	}
	return len(p), nil
}
