package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/semaphore"
)

// A herd is a number of sessions of one semaphore under load, all in this process. So the test can
// count the permits that their holders may trust, at every instant. Some goroutines of a session
// hold a permit for a moment and take the next one. A keeper holds one for as long as the permit
// lives.
type herd struct {
	t        *testing.T
	cfg      semaphore.Config
	sessions []*semaphore.Semaphore
	keepers  int
	end      context.CancelFunc
	wg       sync.WaitGroup

	mu sync.Mutex

	// Guarded by mu.
	held   map[*semaphore.Permit]bool // true: a keeper's
	peak   int
	overs  []time.Time // when the holders exceeded the capacity
	grants int
	asked  time.Time     // when the latest granted request was made
	grown  chan struct{} // closed at the next grant
	kept   int           // grants to keepers: a number beyond the keepers' own was lost
	stood  time.Duration // the longest time for which this process stood still
	errs   []error
}

// drive starts a herd with a session for each client. Each session has a keeper, and movers that
// hold a permit for the time given. The herd ends with the test, or by stop.
func drive(
	t *testing.T, cfg semaphore.Config, movers int, holding time.Duration,
	clients ...redis.UniversalClient,
) *herd {
	t.Helper()
	cfg.MaxAttempts = -1
	h := &herd{t: t, cfg: cfg, keepers: len(clients), held: make(map[*semaphore.Permit]bool),
		grown: make(chan struct{})}
	var ctx context.Context
	ctx, h.end = context.WithCancel(context.Background())
	t.Cleanup(h.stop)
	h.wg.Go(func() { h.clock(ctx) })
	for _, c := range clients {
		s, err := semaphore.New(context.Background(), c, cfg)
		if err != nil {
			t.Fatal(err)
		}
		h.sessions = append(h.sessions, s)
		h.wg.Go(func() { h.work(ctx, s, true, time.Hour) })
		for range movers {
			h.wg.Go(func() { h.work(ctx, s, false, holding) })
		}
	}
	eventually(t, time.Minute, func() (bool, string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.kept == h.keepers, fmt.Sprintf("%d of %d keepers hold a permit", h.kept, h.keepers)
	})
	return h
}

// clock measures for how long this process stands still.
func (h *herd) clock(ctx context.Context) {
	const each = 10 * time.Millisecond
	for last := time.Now(); ctx.Err() == nil; {
		time.Sleep(each)
		now := time.Now()
		h.mu.Lock()
		h.stood = max(h.stood, now.Sub(last)-each)
		h.mu.Unlock()
		last = now
	}
}

func (h *herd) work(
	ctx context.Context, s *semaphore.Semaphore, keeper bool, holding time.Duration,
) {
	for ctx.Err() == nil {
		asked := time.Now()
		p, err := s.Acquire(ctx)
		if err != nil {
			h.failed(ctx, err)
			continue
		}
		h.take(p, asked, keeper)
		timer := time.NewTimer(holding)
		select {
		case <-timer.C:
		case <-p.Lost():
		case <-ctx.Done():
		}
		timer.Stop()
		// First it stops counting the permit, and only then releases it.
		h.mu.Lock()
		delete(h.held, p)
		h.mu.Unlock()
		// If Redis is unreachable, the session releases later, or the lease ends.
		_ = p.Release(context.Background())
	}
}

func (h *herd) take(p *semaphore.Permit, asked time.Time, keeper bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[p] = keeper
	believed := 0
	for p := range h.held {
		if p.Held() {
			believed++
		}
	}
	h.peak = max(h.peak, believed)
	if believed > h.cfg.Capacity {
		h.overs = append(h.overs, time.Now())
	}
	h.grants++
	if keeper {
		h.kept++
	}
	if asked.After(h.asked) {
		h.asked = asked
	}
	close(h.grown)
	h.grown = make(chan struct{})
}

func (h *herd) failed(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	h.mu.Lock()
	h.errs = append(h.errs, err)
	h.mu.Unlock()
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
}

// next waits, at most a minute, for the first grant to a request that was made after since. Such a
// grant cannot be older than the event at since. next returns how long it took.
func (h *herd) next(since time.Time) time.Duration {
	h.t.Helper()
	limit := time.After(time.Minute)
	for {
		h.mu.Lock()
		asked, grown := h.asked, h.grown
		h.mu.Unlock()
		if asked.After(since) {
			return time.Since(since)
		}
		select {
		case <-grown:
		case <-limit:
			h.mu.Lock()
			defer h.mu.Unlock()
			h.t.Fatalf("no new grant for %v; errors: %v", time.Since(since), h.errs)
		}
	}
}

// flows waits until grants follow one another, none is paused, and Redis knows every session.
func (h *herd) flows() {
	h.t.Helper()
	var why string
	eventually(h.t, time.Minute, func() (bool, string) {
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Second)
		defer cancel()
		snap, err := h.sessions[0].Snapshot(ctx)
		why = fmt.Sprintf("%d sessions of %d, grants paused for %v, error %v", len(snap.Sessions),
			len(h.sessions), snap.GrantsPausedFor, err)
		return err == nil && snap.GrantsPausedFor == 0 && len(snap.Sessions) >= len(h.sessions), why
	})
	for range 3 {
		h.next(time.Now())
	}
}

// lostByKeepers returns how many permits keepers have lost.
func (h *herd) lostByKeepers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.kept - h.keepers
}

// watchKeepers watches the keepers from now on. The function that it returns fails if one of them
// has lost its permit since. It does not where this process stood still for a good part of a lease:
// the machine took the lease then.
func (h *herd) watchKeepers() (judge func(what string)) {
	kept := h.lostByKeepers()
	h.mu.Lock()
	h.stood = 0
	h.mu.Unlock()
	return func(what string) {
		h.t.Helper()
		lost := h.lostByKeepers() - kept
		h.mu.Lock()
		stood := h.stood
		h.mu.Unlock()
		if lost == 0 {
			return
		}
		if stood > h.cfg.TTL/4 {
			h.t.Logf("%s: holders lost %d permits, but this process stood still for %v", what, lost,
				stood)
			return
		}
		h.t.Errorf("%s: holders lost %d permits", what, lost)
	}
}

// over returns the times at which there were more permits than the capacity.
func (h *herd) over() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]time.Time(nil), h.overs...)
}

// safe fails if there were ever more permits than the capacity.
func (h *herd) safe() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.t.Logf("%d grants, %d permits at the peak, capacity %d, %d lost by keepers, %d errors",
		h.grants, h.peak, h.cfg.Capacity, h.kept-h.keepers, len(h.errs))
	if len(h.overs) > 0 {
		h.t.Errorf("%d permits were held at once, capacity %d", h.peak, h.cfg.Capacity)
	}
	if h.peak < h.cfg.Capacity {
		h.t.Errorf("peak of %d permits: the run never reached the capacity of %d", h.peak,
			h.cfg.Capacity)
	}
}

func (h *herd) stop() {
	h.end()
	h.wg.Wait()
	var closing sync.WaitGroup
	for _, s := range h.sessions {
		closing.Go(func() { _ = s.Close() })
	}
	closing.Wait()
	h.sessions = nil
}

// handsOver fails unless a permit passes from one session to another by push. A waiter retries by
// itself after RetryInterval, or when the first of the leases could end, whichever comes first. The
// permit is granted anew for each try, so both times are beyond limit. Some tries are allowed,
// because a subscription may still be reconnecting.
func handsOver(t *testing.T, from, to *semaphore.Semaphore, capacity int) {
	t.Helper()
	const limit, tries = 3 * time.Second, 4
	for try := 1; ; try++ {
		took := handOver(t, from, to, capacity)
		t.Logf("hand-over by push: %v", took.Round(10*time.Microsecond))
		if took < limit {
			return
		}
		if try == tries {
			t.Fatalf("a permit was handed over after %v, %d times: pushes do not arrive", took,
				tries)
		}
	}
}

// handOver returns the time from a release in one session to the grant in another.
func handOver(t *testing.T, from, to *semaphore.Semaphore, capacity int) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	held, err := from.AcquireN(ctx, capacity)
	if err != nil {
		t.Fatal(err)
	}
	granted := make(chan error, 1)
	var at time.Time
	go func() {
		p, err := to.Acquire(ctx)
		at = time.Now()
		if err == nil {
			err = p.Release(ctx)
		}
		granted <- err
	}()
	eventually(t, time.Minute, func() (bool, string) {
		snap, err := from.Snapshot(ctx)
		return err == nil && len(snap.Waiters) == 1, fmt.Sprintf("no request waits: %v", err)
	})
	began := time.Now()
	for _, p := range held {
		if err := p.Release(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-granted; err != nil {
		t.Fatal(err)
	}
	return at.Sub(began)
}
