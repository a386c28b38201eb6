package demo

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// The tests' program is also the fleet's workers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == fleet.WorkerCommand {
		os.Exit(fleet.RunWorker())
	}
	goleak.VerifyTestMain(m)
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// A small run of the whole demo: the fleet without PassBuddy exceeds the server's limit, the fleet
// with it keeps the cap.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this runs a fleet of processes for some seconds")
	}
	if _, err := throwaway.FindPostgres(t.Context()); errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("the demo needs a PostgreSQL server (make test installs it): ", err)
	}
	for _, integration := range []string{fleet.Pgxpool, fleet.SQL} {
		t.Run(integration, func(t *testing.T) {
			svg := filepath.Join(t.TempDir(), "demo.svg")
			// The machine can stand still for as long as a run takes. Then the fleet does nothing,
			// and the demo runs once more.
			const tries = 3
			for try := 1; ; try++ {
				if refused := demo(t, integration, svg); refused {
					break
				}
				if try == tries {
					t.Fatalf("without PassBuddy no client was refused, in %d runs", tries)
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

// demo runs the demo, and reports whether Postgres refused clients without PassBuddy.
func demo(t *testing.T, integration, svg string) (refused bool) {
	t.Helper()
	o, err := ParseOptions([]string{"-processes", "2", "-goroutines", "8", "-cap", "3", "-duration", "2s",
		"-query", "select pg_sleep(0.005)", "-integration", integration, "-svg", svg}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	var out, status bytes.Buffer
	if err := Run(testContext(t), o, &out, &status); err != nil {
		t.Errorf("demo: %v\n%s\n%s", err, &out, &status)
	}
	// On a machine that is short of processor time a fleet need not come to use all of its cap.
	for _, part := range []string{`peak of backends \(cap 3\)`, `With PassBuddy: never more than [1-3] backends`} {
		if !regexp.MustCompile(part).MatchString(out.String()) {
			t.Errorf("no %q in:\n%s", part, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if f := strings.Fields(line); len(f) == 6 &&
			strings.HasPrefix(line, "   failed: too many clients") {
			refused = f[4] != "0"
			if f[5] != "0" {
				t.Errorf("want no refusals with PassBuddy: %s", line)
			}
		}
	}
	return refused
}

func TestDemoIsInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this runs a fleet of processes")
	}
	if _, err := throwaway.FindPostgres(t.Context()); errors.Is(err, throwaway.ErrNotFound) {
		t.Skip("the demo needs a PostgreSQL server (make test installs it): ", err)
	}
	o, err := ParseOptions([]string{"-processes", "2", "-goroutines", "4", "-cap", "2", "-duration",
		"1h",
		"-svg", filepath.Join(t.TempDir(), "demo.svg")}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	// the first line of progress: the fleet runs
	status := &signalWriter{written: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o, &bytes.Buffer{}, status) }()
	select {
	case <-status.written:
	case err := <-ended:
		t.Fatalf("the demo ended before its interruption: %v", err)
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
