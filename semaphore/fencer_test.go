package semaphore

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func (s *session) fencer(t *testing.T, pg *postgres) *fencer {
	t.Helper()
	f := &fencer{pool: &pool{}, t: t, pg: pg, s: s}
	share, err := s.NewShare(f)
	if err != nil {
		t.Fatal(err)
	}
	f.share = share
	return f
}

// A fencer is a pool whose permits cover backends, and that ends those of others. A Postgres of the test's own knows which live.
type fencer struct {
	*pool
	t  *testing.T
	pg *postgres
	s  *session

	deaf  atomic.Bool // it does not get through to Postgres
	stuck atomic.Bool // nor does it hear of that before it gives up; and its own connections do not end
	asked atomic.Int32
	looks atomic.Int32 // how often it was asked which backends are gone
}

func (f *fencer) live() int { return f.pg.live() }

// live is how many backends there are.
func (pg *postgres) live() int {
	pgMu.Lock()
	defer pgMu.Unlock()
	return len(*pg)
}

// postgres is its backends: true for those that live.
type postgres map[Backend]bool

// open acquires n permits and opens as many connections.
func (f *fencer) open(n int) {
	f.t.Helper()
	had := len(f.granted())
	for patience := 0; len(f.granted()) < had+n; patience++ {
		f.share.Ask(had + n - len(f.granted()))
		if len(f.granted()) < had+n {
			time.Sleep(10 * time.Millisecond)
		}
		if patience == 300 {
			f.t.Fatalf("granted %d of %d", len(f.granted())-had, n)
		}
	}
	f.share.Ask(0)
	time.Sleep(2 * withdrawAfter)
	for _, p := range f.granted()[had:] {
		if err := f.connect(p); err != nil {
			f.t.Fatalf("Cover: %v", err)
		}
	}
}

func (f *fencer) granted() []*Permit {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.permits)
}

// end gives back what it has.
func (f *fencer) end() {
	for range f.granted() {
		f.give()
	}
}

func (f *fencer) connect(p *Permit) error {
	n := backendsMade.Add(1)
	b := Backend{PID: uint32(n), Start: int64(1e15) + n, Server: 1}
	pgMu.Lock()
	(*f.pg)[b] = true
	pgMu.Unlock()
	return f.share.Cover(p, b)(f.t.Context())
}

// pgMu guards what EndBackends writes while a test reads.
var pgMu sync.Mutex

// backendsMade counts them: no two are the same.
var backendsMade atomic.Int64

func (f *fencer) EndBackends(ctx context.Context, backends []Backend) []bool {
	f.asked.Add(1)
	if f.stuck.Load() {
		<-ctx.Done()
		return nil
	}
	time.Sleep(3 * time.Millisecond)
	gone := make([]bool, len(backends))
	pgMu.Lock()
	defer pgMu.Unlock()
	for i, b := range backends {
		b.Server = 1 // it is asked for by pid and start
		if !f.deaf.Load() {
			delete(*f.pg, b)
		}
		gone[i] = !(*f.pg)[b]
	}
	return gone
}

func (f *fencer) BackendsGone(_ context.Context, backends []Backend) []bool {
	f.looks.Add(1)
	time.Sleep(3 * time.Millisecond)
	gone := make([]bool, len(backends))
	pgMu.Lock()
	defer pgMu.Unlock()
	for i, b := range backends {
		gone[i] = !(*f.pg)[b] && !f.deaf.Load()
	}
	return gone
}

func (f *fencer) Closed() {
	if !f.stuck.Load() {
		f.pool.Closed()
	}
}

// reckoned fails unless everything that Redis counts is what there is.
func (w *world) reckoned(t *testing.T) {
	t.Helper()
	synctest.Wait()
	const base = "{passbuddy-semaphore}:"
	ids, _ := w.redis.ZMembers("passbuddy-semaphore")
	quarantined, _ := w.redis.HKeys(base + "quarantine")
	if got := w.redis.HGet(base+"meta", "count"); got != "" && got != strconv.Itoa(len(ids)) {
		t.Errorf("count is %s, there are %d permits", got, len(ids))
	}
	held := make(map[string]int)
	for _, id := range ids {
		if id[19:23] != "8000" && !slices.Contains(quarantined, id) {
			held[id[:23]]++
		}
	}
	sharers, _ := w.redis.HKeys(base + "held")
	for _, sharer := range sharers {
		if got := w.redis.HGet(base+"held", sharer); got != strconv.Itoa(held[sharer]) {
			t.Errorf("%s holds %d, counted %s", sharer, held[sharer], got)
		}
	}
	if len(held) > len(sharers) {
		t.Errorf("%d sharers hold permits, %d are counted", len(held), len(sharers))
	}
	backends, _ := w.redis.HKeys(base + "backends")
	for _, id := range backends {
		if !slices.Contains(ids, id) {
			t.Errorf("a backend is recorded for %s, which is not held", id)
		}
	}
}

// frozen is a fleet at capacity 4 in which one session that holds two permits stops, and another waits.
func frozen(t *testing.T, w *world, cfg Config) (sleeper, awake *fencer, waiting *pending) {
	cfg.Capacity, cfg.MaxAttempts = 4, -1
	pg := &postgres{}
	sleeper, awake = w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
	sleeper.open(2)
	awake.open(2)
	w.reckoned(t)
	waiting = w.join(Config{Capacity: 4, MaxAttempts: -1}).later(t.Context())
	if waiting.isDone() {
		t.Fatal("bug in the test: not at capacity")
	}
	sleeper.s.link.setCut(true)
	return sleeper, awake, waiting
}

func must[T any](v T, _ error) T { return v }

// expire ends the lease of p in Redis alone, and has Redis look.
func (w *world) expire(t *testing.T, s *session, p *Permit) {
	t.Helper()
	if _, err := w.redis.ZAdd("passbuddy-semaphore", 1, p.ID()); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCapacity(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}
