package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/semaphore"
)

// This file is the part of a chaos run inside each process: see chaos_test.go.
//
// Beside its pool a process has a second semaphore, whose plain permits it keeps only for a moment.
// A pool with enough permits asks Redis for nothing. So the plain permits tell when grants resume
// after a fault; their requests wait in Redis one by one, first come, first served.

// chaosWork is the work of such a process besides its job. It goes on until the process is told to
// end.
type chaosWork struct {
	Plain         string        // the name of the second semaphore
	PlainCapacity int           //
	Takers        int           // goroutines that acquire a plain permit, again and again
	Keep          time.Duration // how long each keeps it
}

// Commands to a process of a chaos run, besides end.
const (
	// no fault from now on: callers must be served in turn, and no goroutine pauses
	calm  = "calm"
	storm = "storm" // the calm is over
	// with a number: set the capacity as an operator does, for the whole fleet
	setCapacity = "capacity"
)

// progress is the report of the process, every few milliseconds.
type progress struct {
	Grants    []stamp `json:",omitempty"` // plain permits that were granted
	Checkouts []stamp `json:",omitempty"` // from the pool
	Failures  []mishap
	Calm      *servedInTurn // the report on a calm that has ended
}

// servedInTurn tells whether callers were served in turn in a calm.
type servedInTurn struct {
	Callers int      // callers that were judged
	Passed  []string // those that were passed
}

// A stamp tells when a caller asked, and when it was served. All processes run on one host, so they
// share one clock.
type stamp struct{ Asked, Had int64 }

// A mishap is an operation that failed.
type mishap struct {
	Began, Ended time.Time
	Error        string
}

const (
	reportEvery = 20 * time.Millisecond
	// pausing goroutines of a process; the others work in calms
	pausing = 3
	// an operation that fails at once is not retried at full speed
	afterFailed = 20 * time.Millisecond
	// maxPassed is how often one and the same caller may be served while an earlier caller waits.
	// A queue never does that. But on a busy machine a granted caller can be late to notice, and
	// another caller can pass twice.
	maxPassed = 2
)

// chaosWorker is the state of such a process.
type chaosWorker struct {
	mu sync.Mutex

	// Guarded by mu.
	unsaid progress
	calm   time.Time     // since when; zero: there is no calm
	calms  chan struct{} // closed when a calm begins
	turns  []turn
	begun  map[int]time.Time // by caller: since when it waits
	ops    int
}

// A turn is one wait of a caller, from its start to its service.
type turn struct {
	stamp
	caller int
}

func (e *chaosWorker) checkout(
	caller int, asked time.Time, waited time.Duration, ended time.Time, err error,
) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.begun, caller) // if the caller was not served
	if err != nil {
		e.unsaid.Failures = append(e.unsaid.Failures, mishap{asked, ended, err.Error()})
		return
	}
	e.ops++
	s := stamp{asked.UnixNano(), asked.Add(waited).UnixNano()}
	e.unsaid.Checkouts = append(e.unsaid.Checkouts, s)
	if !e.calm.IsZero() && asked.After(e.calm) {
		e.turns = append(e.turns, turn{s, caller})
	}
}

func (e *chaosWorker) arrives(caller int) (asked time.Time) {
	asked = time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.begun[caller] = asked
	return asked
}

func (e *chaosWorker) served(caller int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.begun, caller)
}

func (e *chaosWorker) granted(asked, had time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unsaid.Grants = append(e.unsaid.Grants, stamp{asked.UnixNano(), had.UnixNano()})
}

func (e *chaosWorker) beginCalm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.calm.IsZero() {
		close(e.calms)
	}
	e.calm, e.turns = time.Now(), nil
}

// pause lasts until a calm begins, at most. It reports whether it lasted for the whole time.
func (e *chaosWorker) pause(d time.Duration) bool {
	e.mu.Lock()
	calms := e.calms
	e.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-calms:
		return false
	}
}

// endCalm ends a calm, and notes the callers that were not served in turn in it.
func (e *chaosWorker) endCalm() {
	e.mu.Lock()
	defer e.mu.Unlock()
	said := &servedInTurn{Callers: len(e.turns)}
	dumped := false
	all := e.turns[:len(e.turns):len(e.turns)]
	for caller, asked := range e.begun { // the callers that still wait
		all = append(all, turn{stamp{asked.UnixNano(), time.Now().UnixNano()}, caller})
	}
	for i, waited := range all {
		passedBy := make(map[int]int)
		for _, other := range e.turns {
			if other.Asked > waited.Asked && other.Had < waited.Had {
				passedBy[other.caller]++
			}
		}
		for caller, times := range passedBy {
			if times > maxPassed {
				text := fmt.Sprintf("caller %d, which waited for %v, was passed %d times by "+
					"caller %d, and by %d callers in all",
					waited.caller, time.Duration(waited.Had-waited.Asked), times, caller,
					len(passedBy))
				if i >= len(e.turns) {
					text += "; it still waits"
					if !dumped {
						dumped = true
						buf := make([]byte, 1<<20)
						text += ":\n" + string(buf[:runtime.Stack(buf, true)])
					}
				}
				said.Passed = append(said.Passed, text)
			}
		}
	}
	e.unsaid.Calm = said
	if !e.calm.IsZero() {
		e.calms = make(chan struct{})
	}
	e.calm, e.turns = time.Time{}, nil
}

func (e *chaosWorker) report() progress {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.unsaid
	e.unsaid = progress{}
	return p
}

// runChaosWorker is the main function of such a process.
func runChaosWorker(j job, in *bufio.Reader) error {
	e := &chaosWorker{begun: make(map[int]time.Time), calms: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var out sync.Mutex
	encoder := json.NewEncoder(os.Stdout)
	say := func(m message) error {
		out.Lock()
		defer out.Unlock()
		return encoder.Encode(m)
	}

	var pools *semaphore.Semaphore // set before any goroutine gets it
	go func() {
		for commands := bufio.NewScanner(in); commands.Scan(); {
			switch word, rest, _ := strings.Cut(commands.Text(), " "); word {
			case calm:
				e.beginCalm()
			case storm:
				e.endCalm()
			case end:
				e.endCalm()
				cancel()
			case setCapacity:
				var n int
				_, _ = fmt.Sscan(rest, &n)
				if err := pools.SetCapacity(ctx, n); err != nil {
					now := time.Now()
					e.checkout(-1, now, 0, now, fmt.Errorf("set the capacity: %w", err))
				}
			}
		}
		os.Exit(2) // The parent has ended.
	}()
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			p := e.report()
			_ = say(message{Progress: &p})
		}
	}()

	// Every goroutine that starts from here on must have ended at the end.
	before := runtime.NumGoroutine()
	cfg := semaphore.Config{Name: j.Semaphore, Capacity: j.Capacity, TTL: j.TTL, MaxAttempts: -1}
	pools, err := joinInTime(j.Redis, cfg)
	if err != nil {
		return err
	}
	cfg.Name, cfg.Capacity = j.Chaos.Plain, j.Chaos.PlainCapacity
	plain, err := joinInTime(j.Redis, cfg)
	if err != nil {
		return err
	}
	p, err := newPool(j, pools)
	if err != nil {
		return err
	}
	if err := say(message{Joined: &greeting{time.Now()}}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for caller := range j.Goroutines {
		wg.Go(func() {
			j := j
			j.served = func() { e.served(caller) }
			for ctx.Err() == nil {
				if j.Pause > 0 && e.pause(j.Pause) && caller >= pausing {
					continue
				}
				asked := e.arrives(caller)
				waited, err := p.once(j)
				e.checkout(caller, asked, waited, time.Now(), err)
				if err != nil {
					time.Sleep(afterFailed)
				}
			}
		})
	}
	for range j.Chaos.Takers {
		wg.Go(func() {
			for ctx.Err() == nil {
				asked := time.Now()
				permit, err := plain.Acquire(ctx)
				if err != nil {
					// Redis is away: it has granted nothing, and nothing is broken.
					time.Sleep(afterFailed)
					continue
				}
				e.granted(asked, time.Now())
				time.Sleep(j.Chaos.Keep)
				_ = permit.Release(context.Background()) // If Redis is unreachable, the lease ends.
			}
		})
	}
	wg.Wait()
	p.close()
	if err := pools.Close(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	if err := plain.Close(); err != nil {
		return fmt.Errorf("closing: %w", err)
	}
	<-reported
	left, stacks := remaining(before - 1) // The goroutine that reports has ended.
	p2 := e.report()
	if err := say(message{Progress: &p2}); err != nil {
		return err
	}
	return say(message{Outcome: &outcome{Ops: e.ops, Left: time.Now(), Goroutines: left,
		Stacks: stacks}})
}

// joinInTime retries until Redis answers, as a supervisor restarts a process that cannot join.
func joinInTime(url string, cfg semaphore.Config) (*semaphore.Semaphore, error) {
	const patience = 30 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		s, err := semaphore.Open(context.Background(), url, cfg)
		if err == nil || time.Now().After(deadline) {
			return s, err
		}
	}
}

// remaining returns how many goroutines there are beyond those at the start, and their stacks. A
// socket may take package socket's drainTimeout to end.
func remaining(before int) (n int, stacks string) {
	const patience = 20 * time.Second
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if n = runtime.NumGoroutine() - before; n <= 0 {
			return 0, ""
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			return n, string(buf[:runtime.Stack(buf, true)])
		}
	}
}
