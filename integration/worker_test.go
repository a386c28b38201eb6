package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy"
	"github.com/passbuddy/passbuddy/internal/quiet"
)

// job is the task of a worker process, sent on its standard input.
type job struct {
	Redis, Postgres string
	Semaphore       string
	Capacity        int
	TTL             time.Duration
	Min, Max        int // of the session
	Weight          int
	// pgxpool, stdlib or pq; with the prefix "bare-" without PassBuddy; semaphore: permits alone
	Integration   string
	Share         int // of a bare pool: its size
	Scope         passbuddy.Scope
	Fence         bool
	Fault         string // "", cancel, hijack, afterconnect, terminate, kill, freeze, away, exit
	KeepOnLoss    bool
	FallbackConns int
	Goroutines    int
	Load          time.Duration // at most: see worker.tell
	MinQuery      time.Duration // queries last from this
	MaxQuery      time.Duration // ... to this
	QueryTimeout  time.Duration // of a query, its checkout excepted; 0: none
	// the first queries of five goroutines take this long; 0: like all others
	FirstQuery time.Duration
	Pause      time.Duration // of a goroutine between two queries
	Chaos      *chaosWork    // of a process in a chaos run
	served     func()        // if not nil, called at each checkout
}

// message is a report of the worker on its standard output; one field is set.
type message struct {
	Joined   *greeting
	Progress *progress // of a process in a chaos run
	SoFar    *outcome  // the answer to the command soFar
	Outcome  *outcome  // the last one
}

// greeting is the worker's first message: its session and its pool are open.
type greeting struct{ Joined time.Time }

const workerEnv = "PASSBUDDY_INTEGRATION_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			os.Exit(1)
		}
		return
	}
	quiet.Redis()
	os.Exit(m.Run())
}

// A worker is one process of the fleet.
type worker struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	greet chan greeting
	sofar chan outcome
	out   chan outcome
	err   chan error
}

// The commands that a worker takes, one in a line.
const (
	count = "count"  // the tally counts from now: see tally
	soFar = "so far" // report the operations until now
	end   = "end"    // end in good order, before Load is over
)

// start runs a worker. It ends when its job does, or with its parent, because its standard input
// closes then.
func start(t testing.TB, j job) *worker {
	t.Helper()
	return startHeard(t, j, os.Stderr, func(progress) {})
}

// startHeard is start with a listener for the worker's progress, called from a goroutine of its
// own.
func startHeard(t testing.TB, j job, stderr io.Writer, heard func(progress)) *worker {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), workerEnv+"=1")
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &worker{cmd: cmd, stdin: stdin, greet: make(chan greeting, 1),
		sofar: make(chan outcome, 1), out: make(chan outcome, 1), err: make(chan error, 1)}
	if err := json.NewEncoder(stdin).Encode(j); err != nil {
		t.Fatal(err)
	}
	go func() {
		reports := json.NewDecoder(stdout)
		for {
			var m message
			if reports.Decode(&m) != nil {
				break
			}
			switch {
			case m.Joined != nil:
				w.greet <- *m.Joined
			case m.Progress != nil:
				heard(*m.Progress)
			case m.SoFar != nil:
				w.sofar <- *m.SoFar
			case m.Outcome != nil:
				w.out <- *m.Outcome
			}
		}
		close(w.greet)
		close(w.sofar)
		close(w.out)
		w.err <- cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-w.err
	})
	return w
}

// tell sends a command.
func (w *worker) tell(t testing.TB, command string) {
	t.Helper()
	if _, err := io.WriteString(w.stdin, command+"\n"); err != nil {
		t.Fatalf("telling a process to %s: %v", command, err)
	}
}

// joined waits until the worker is ready to work.
func (w *worker) joined(t testing.TB) time.Time {
	t.Helper()
	g, ok := <-w.greet
	if !ok {
		t.Fatal("a process ended before it had joined")
	}
	return g.Joined
}

// soFar returns the operations of the worker until now.
func (w *worker) soFar(t testing.TB) outcome {
	t.Helper()
	w.tell(t, soFar)
	o, ok := <-w.sofar
	if !ok {
		t.Fatal("a process ended before it was told to")
	}
	return o
}

// allServed waits until every process has made an operation, and the fleet had so many failures
// that the fault causes.
func allServed(t testing.TB, fleet []*worker, failures int) {
	t.Helper()
	eventually(t, time.Minute, func() (bool, string) {
		starved, failed := 0, 0
		for _, w := range fleet {
			o := w.soFar(t)
			failed += o.Expected
			if o.Ops == 0 {
				starved++
			}
		}
		return starved == 0 && failed >= failures, fmt.Sprintf(
			"%d processes made no operation, and %d operations failed by the fault, want at least %d",
			starved, failed, failures)
	})
}

// outcome waits for the end of the worker, which must have succeeded.
func (w *worker) outcome(t testing.TB) outcome {
	t.Helper()
	o, ok := <-w.out
	if !ok {
		t.Fatal("a process reported no outcome")
	}
	if o.Failed > 0 {
		t.Fatalf("%d operations of a process failed: %q", o.Failed, o.Errors)
	}
	return o
}
