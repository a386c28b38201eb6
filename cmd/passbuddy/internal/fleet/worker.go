package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/show"
)

const (
	tooManyClients = "53300" // SQLSTATE too_many_connections
	// failurePause keeps a goroutine whose operation failed from spinning.
	failurePause = 5 * time.Millisecond
	maxFailures  = 20 // distinct texts to keep
)

// RunWorker is the hidden command: one process of the fleet. It returns the exit status.
func RunWorker() int {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := work(stop, os.Stdin, os.Stdout, os.Exit); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(Report{Error: err.Error()}) // the parent may be gone
		return 1
	}
	return 0
}

// work does as the protocol says until stop is done. It calls exit when in ends early.
func work(stop context.Context, in io.Reader, out io.Writer, exit func(int)) error {
	requests, reports := json.NewDecoder(in), json.NewEncoder(out)
	var cfg Config
	if err := requests.Decode(&cfg); err != nil {
		return fmt.Errorf("worker: no configuration: %w", err)
	}
	connects := newConnectCounter()
	p, err := openPool(stop, cfg, connects)
	if err != nil {
		return err
	}
	w := &worker{cfg: cfg, pool: p, connects: connects, wait: NewLatency(), total: NewLatency(),
		failures: make(map[string]int64)}
	if err := reports.Encode(w.report()); err != nil {
		return err
	}
	started := make(chan Span, 1)
	go func() {
		for first := true; ; first = false {
			var s Span
			if err := requests.Decode(&s); err != nil {
				exit(1) // the parent is gone
				return
			}
			if first {
				started <- s
			}
		}
	}()
	select {
	case s := <-started:
		w.window = newWindow(s)
		if sleep(stop, time.Until(w.window.begin)) {
			w.run(stop, reports)
		}
		<-stop.Done() // the parent can read our CPU time until then
	case <-stop.Done():
	}
	w.close()
	final, err := w.finalReport()
	if err != nil {
		return err
	}
	return reports.Encode(final)
}

// worker counts what its goroutines do.
type worker struct {
	cfg         Config
	pool        pool
	connects    *connectCounter
	wait, total *Latency
	window      *window // nil before the start; note under mu

	mu       sync.Mutex
	counts   Counts
	served   int
	failures map[string]int64
}

// run runs the goroutines until stop is done or the window ends, and reports meanwhile. It returns
// when they have ended.
func (w *worker) run(stop context.Context, reports *json.Encoder) {
	if w.window.ends() {
		var cancel context.CancelFunc
		stop, cancel = context.WithDeadline(stop, w.window.until)
		defer cancel()
	}
	// Queries have a context of their own. Those in flight at the end may finish within a bound, so
	// that the worker counts their results.
	queries, cancel := context.WithCancel(context.Background())
	defer cancel()
	var goroutines sync.WaitGroup
	if w.cfg.Load.open() {
		goroutines.Go(func() { w.arrive(stop, queries) })
	} else {
		for range w.cfg.Goroutines {
			goroutines.Go(func() { w.repeat(stop, queries) })
		}
	}
	ended := make(chan struct{})
	go func() {
		goroutines.Wait()
		close(ended)
	}()

	ticker := time.NewTicker(ReportInterval)
	defer ticker.Stop()
	stopping := stop.Done()
	for {
		select {
		case <-ticker.C:
			_ = reports.Encode(w.report()) // stdin shows when the parent is gone
		case <-stopping:
			stopping = nil
			defer time.AfterFunc(w.cfg.Drain, cancel).Stop()
		case <-ended:
			return
		}
	}
}

// close closes the pool. A pool waits for each of its connections. One that waits in PgBouncer's
// queue can take as long as the queue.
func (w *worker) close() {
	closed := make(chan struct{})
	go func() {
		w.pool.close()
		close(closed)
	}()
	if w.cfg.Closing == 0 {
		<-closed
		return
	}
	select {
	case <-closed:
	case <-time.After(w.cfg.Closing):
	}
}

// repeat does one operation after the other until stop is done, with the load's pause before each
// and one after each failure.
func (w *worker) repeat(stop, queries context.Context) {
	served := false
	for sleep(stop, time.Duration(rand.ExpFloat64()*float64(w.cfg.Load.Pause))) {
		switch counted, err := w.operate(time.Now(), stop, queries); {
		case err != nil:
			w.fail(err)
			sleep(stop, time.Duration((0.5+rand.Float64())*float64(failurePause)))
		case counted && !served:
			served = true
			w.mu.Lock()
			w.served++
			w.mu.Unlock()
		}
	}
}

// operate borrows a connection, does the operation, gives the connection back, and says whether it
// counted that. The operation's time counts from began. At the end of the run operate gives up a
// wait for a connection and does not count it. It does not count an operation that succeeds after
// the end either, because the counts are divided by the length of the run. An open loop, and a
// worker that ends gracefully, let waits go on for as long as queries.
func (w *worker) operate(began time.Time, stop, queries context.Context) (counted bool, err error) {
	open := w.cfg.Load.open()
	waits := stop
	if open || w.cfg.Graceful {
		waits = queries
	}
	conn, err := w.pool.checkout(waits)
	if err != nil {
		if waits.Err() != nil {
			return false, w.gaveUp(began, time.Time{})
		}
		return false, err
	}
	checkedOut := time.Now()
	err = conn.operate(queries, w.cfg.Operation)
	conn.giveBack()
	if queries.Err() != nil {
		return false, w.gaveUp(began, checkedOut)
	}
	ended := time.Now()
	if err != nil {
		return false, err
	}
	// An open loop's latencies include every operation that was due in the window, however late it
	// ended. A closed loop's latencies include the operations that ended in the window.
	timed, inTime := w.window.contains(began), w.window.contains(ended)
	if !open {
		if stop.Err() != nil && !(w.cfg.Graceful && inTime) {
			return false, w.gaveUp(began, checkedOut)
		}
		timed = inTime
	}
	if timed {
		w.wait.Record(checkedOut.Sub(began))
		w.total.Record(ended.Sub(began))
	}
	if !inTime {
		return false, nil
	}
	w.mu.Lock()
	w.counts.Operations++
	w.window.note(ended)
	w.mu.Unlock()
	return true, nil
}

// errAbandoned is the failure of an operation whose process ended gracefully, and could not wait
// for it any longer.
var errAbandoned = errors.New("the process ended before the operation did")

// gaveUp counts an operation that was in flight when the run, or its process, ended.
func (w *worker) gaveUp(began, checkedOut time.Time) error {
	now := time.Now()
	switch {
	case w.cfg.Graceful && w.window.ends() && w.window.contains(now):
		return errAbandoned
	case w.cfg.Load.open():
		w.outstanding(began, checkedOut, now)
	default:
		w.unfinished(began, checkedOut)
	}
	return nil
}

// outstanding records an operation of an open loop that the worker gave up at now, with the time
// that it had lasted by then.
func (w *worker) outstanding(began, checkedOut, now time.Time) {
	if !w.window.contains(began) {
		return
	}
	w.total.Record(now.Sub(began))
	if checkedOut.IsZero() {
		checkedOut = now
	}
	w.wait.Record(checkedOut.Sub(began))
	w.mu.Lock()
	w.counts.Unfinished++
	w.mu.Unlock()
}

// unfinished records an operation that was in flight when the window ended, with the time that it
// had lasted by then. Otherwise callers that are never served would be in no percentile.
func (w *worker) unfinished(began, checkedOut time.Time) {
	if !w.window.ends() || !began.Before(w.window.until) {
		return
	}
	lasted := w.window.until.Sub(began)
	w.total.Record(lasted)
	if checkedOut.IsZero() || checkedOut.After(w.window.until) {
		w.wait.Record(lasted)
	} else {
		w.wait.Record(checkedOut.Sub(began))
	}
}

func (w *worker) fail(err error) {
	var refused *pgconn.PgError
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.window != nil && !w.window.contains(time.Now()) {
		return
	}
	if errors.As(err, &refused) && refused.Code == tooManyClients {
		w.counts.Refused++
		return
	}
	w.counts.Failed++
	text := show.Shorten(err.Error())
	if _, known := w.failures[text]; !known && len(w.failures) >= maxFailures {
		text = "others"
	}
	w.failures[text]++
}

func (w *worker) report() Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Report{Counts: w.counts}
}

func (w *worker) finalReport() (Report, error) {
	r := w.report()
	r.Final, r.Served, r.Failures = true, w.served, w.failures
	if w.window != nil {
		r.Progress = w.window.progress()
	}
	r.Connects = w.connects.connects()
	var err1, err2 error
	r.Wait, err1 = w.wait.Encode()
	r.Total, err2 = w.total.Encode()
	return r, errors.Join(err1, err2)
}
