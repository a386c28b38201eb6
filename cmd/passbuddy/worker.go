package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	tooManyClients = "53300" // SQLSTATE too_many_connections
	// failurePause keeps a goroutine whose operation failed from spinning.
	failurePause = 5 * time.Millisecond
	// drainTime is how long operations under way may take to end after the run.
	drainTime     = 3 * time.Second
	maxFailures   = 20 // distinct texts kept
	maxFailureLen = 200
)

// runWorker is the hidden command: one process of the fleet.
func runWorker() int {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := work(stop, os.Stdin, os.Stdout, os.Exit); err != nil {
		_ = json.NewEncoder(os.Stdout).Encode(workerReport{Error: err.Error()}) // the parent may be gone
		return exitFailed
	}
	return exitOK
}

// work does as the protocol says until stop is done. It calls exit when in ends early.
func work(stop context.Context, in io.Reader, out io.Writer, exit func(int)) error {
	requests, reports := json.NewDecoder(in), json.NewEncoder(out)
	var cfg workerConfig
	if err := requests.Decode(&cfg); err != nil {
		return fmt.Errorf("worker: no configuration: %w", err)
	}
	p, err := openPool(stop, cfg)
	if err != nil {
		return err
	}
	w := &worker{cfg: cfg, pool: p, wait: newLatency(), total: newLatency(), failures: make(map[string]int64)}
	if err := reports.Encode(w.report()); err != nil {
		return err
	}
	start := make(chan struct{})
	go func() {
		var signal startSignal
		for first := true; ; first = false {
			if err := requests.Decode(&signal); err != nil {
				exit(exitFailed) // the parent is gone
				return
			}
			if first {
				close(start)
			}
		}
	}()
	select {
	case <-start:
		w.run(stop, reports)
	case <-stop.Done():
	}
	p.close()
	final, err := w.finalReport()
	if err != nil {
		return err
	}
	return reports.Encode(final)
}

// worker counts what its goroutines do.
type worker struct {
	cfg         workerConfig
	pool        pool
	wait, total *latency

	mu       sync.Mutex
	counts   counts
	served   int
	failures map[string]int64
}

// run runs the goroutines until stop is done and they have ended, and reports meanwhile.
func (w *worker) run(stop context.Context, reports *json.Encoder) {
	// Queries have a context of their own: those under way at the end are let finish, so that what they meet is
	// counted, but not for ever.
	queries, cancel := context.WithCancel(context.Background())
	defer cancel()
	var goroutines sync.WaitGroup
	for range w.cfg.Goroutines {
		goroutines.Go(func() { w.repeat(stop, queries) })
	}
	ended := make(chan struct{})
	go func() {
		goroutines.Wait()
		close(ended)
	}()

	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	stopping := stop.Done()
	for {
		select {
		case <-ticker.C:
			_ = reports.Encode(w.report()) // a parent that is gone is noticed at stdin
		case <-stopping:
			stopping = nil
			defer time.AfterFunc(drainTime, cancel).Stop()
		case <-ended:
			return
		}
	}
}

// repeat does one operation after the other until stop is done, with a pause after each failure.
func (w *worker) repeat(stop, queries context.Context) {
	served := false
	for stop.Err() == nil {
		switch counted, err := w.operate(stop, queries); {
		case err != nil:
			w.fail(err)
			select {
			case <-time.After(time.Duration((0.5 + rand.Float64()) * float64(failurePause))):
			case <-stop.Done():
			}
		case counted && !served:
			served = true
			w.mu.Lock()
			w.served++
			w.mu.Unlock()
		}
	}
}

// operate borrows a connection, runs the query, gives the connection back, and says whether it counted that. At the
// end of the run a wait for a connection is given up and not counted, nor is a query that succeeds after it: the
// counts are divided by the length of the run.
func (w *worker) operate(stop, queries context.Context) (counted bool, err error) {
	began := time.Now()
	conn, err := w.pool.checkout(stop)
	if err != nil {
		if stop.Err() != nil {
			return false, nil
		}
		return false, err
	}
	waited := time.Since(began)
	err = conn.exec(queries, w.cfg.Query)
	conn.giveBack()
	if queries.Err() != nil {
		return false, nil
	}
	if err != nil || stop.Err() != nil {
		return false, err
	}
	w.wait.record(waited)
	w.total.record(time.Since(began))
	w.mu.Lock()
	w.counts.Operations++
	w.mu.Unlock()
	return true, nil
}

func (w *worker) fail(err error) {
	var refused *pgconn.PgError
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.As(err, &refused) && refused.Code == tooManyClients {
		w.counts.Refused++
		return
	}
	w.counts.Failed++
	text := shorten(err.Error())
	if _, known := w.failures[text]; !known && len(w.failures) >= maxFailures {
		text = "others"
	}
	w.failures[text]++
}

func (w *worker) report() workerReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return workerReport{counts: w.counts}
}

func (w *worker) finalReport() (workerReport, error) {
	r := w.report()
	r.Final, r.Served, r.Failures = true, w.served, w.failures
	var err1, err2 error
	r.Wait, err1 = w.wait.encode()
	r.Total, err2 = w.total.encode()
	return r, errors.Join(err1, err2)
}

// shorten makes one line of at most maxFailureLen bytes.
func shorten(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxFailureLen {
		text = strings.ToValidUTF8(text[:maxFailureLen], "") + "..."
	}
	return text
}
