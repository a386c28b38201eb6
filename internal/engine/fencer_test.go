package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

// A postgres knows which of its backends live, by their tags "<pid> <start> <server>".
type postgres struct {
	mu     sync.Mutex
	opened int64
	alive  map[string]bool
}

// open starts a backend. Each has a tag of its own.
func (pg *postgres) open() (tag string) {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	pg.opened++
	tag = fmt.Sprintf("%d %d 1", pg.opened, int64(1e15)+pg.opened)
	if pg.alive == nil {
		pg.alive = make(map[string]bool)
	}
	pg.alive[tag] = true
	return tag
}

func (pg *postgres) end(tag string) {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	delete(pg.alive, tag)
}

func (pg *postgres) lives(tag string) bool {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	return pg.alive[tag]
}

// live returns how many backends live.
func (pg *postgres) live() int {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	return len(pg.alive)
}

// A fencer is a pool whose permits cover backends.
type fencer struct {
	*pool
	t  *testing.T
	pg *postgres
	s  *session

	mu     sync.Mutex
	covers map[string]string // permit -> the tag of its backend

	deaf  atomic.Bool  // it cannot reach Postgres
	stuck atomic.Bool  // Postgres does not answer it, and its own connections do not end
	asked atomic.Int32 // how often it was asked to end backends
	looks atomic.Int32 // how often it was asked which backends are gone
	slow  atomic.Int64 // how long each of those takes, a time.Duration
}

func (s *session) fencer(t *testing.T, pg *postgres) *fencer {
	t.Helper()
	f := &fencer{pool: &pool{}, t: t, pg: pg, s: s, covers: make(map[string]string)}
	f.join(t, s, f)
	return f
}

// granted returns the permits that the pool holds, once all goroutines of the bubble wait.
func (f *fencer) granted() []*Permit {
	synctest.Wait()
	return f.Permits()
}

// open acquires n permits and opens as many connections.
func (f *fencer) open(n int) {
	f.t.Helper()
	had := len(f.granted())
	for patience := 0; len(f.granted()) < had+n; patience++ {
		f.Ask(had + n - len(f.granted()))
		if len(f.granted()) < had+n {
			time.Sleep(10 * time.Millisecond)
		}
		if patience == 300 {
			f.t.Fatalf("granted %d of %d", len(f.granted())-had, n)
		}
	}
	f.Ask(0)
	time.Sleep(2 * withdrawAfter)
	for _, p := range f.granted()[had:] {
		if err := f.connect(p); err != nil {
			f.t.Fatalf("RecordBackend: %v", err)
		}
	}
}

// connect opens a connection under p.
func (f *fencer) connect(p *Permit) error {
	tag := f.pg.open()
	f.mu.Lock()
	f.covers[p.ID] = tag
	f.mu.Unlock()
	return f.RecordBackend(p, tag)(f.t.Context())
}

// close ends the backends of permits.
func (f *fencer) close(permits ...*Permit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range permits {
		f.pg.end(f.covers[p.ID])
	}
}

// end gives back all permits of the pool.
func (f *fencer) end() {
	for range f.granted() {
		f.GiveBack()
	}
}

func (f *fencer) EndBackends(ctx context.Context, tags []string) []bool {
	f.asked.Add(1)
	if f.stuck.Load() {
		<-ctx.Done()
		return nil
	}
	time.Sleep(3 * time.Millisecond)
	gone := make([]bool, len(tags))
	for i, tag := range tags {
		if len(strings.Fields(tag)) != 2 {
			f.t.Errorf("asked to end %q, want a pid and a start", tag)
		}
		tag += " 1"
		if !f.deaf.Load() {
			f.pg.end(tag)
		}
		gone[i] = !f.pg.lives(tag)
	}
	return gone
}

func (f *fencer) BackendsGone(_ context.Context, tags []string) []bool {
	f.looks.Add(1)
	time.Sleep(time.Duration(f.slow.Load()))
	time.Sleep(3 * time.Millisecond)
	gone := make([]bool, len(tags))
	for i, tag := range tags {
		gone[i] = !f.pg.lives(tag) && !f.deaf.Load()
	}
	return gone
}

func (f *fencer) Closed() {
	if !f.stuck.Load() {
		f.pool.Closed()
	}
}

// recorded returns the backend that Redis has recorded for the permit, with the number of the
// record.
func (w *world) recorded(p *Permit) string { return w.Redis.HGet(keyBase+"backends", p.ID) }

// recordedPermits returns the permits with a recorded backend.
func (w *world) recordedPermits() []string {
	ids, _ := w.Redis.HKeys(keyBase + "backends")
	return ids
}

// checkCounts fails the test unless all counts in Redis agree with the held permits.
func (w *world) checkCounts(t *testing.T) {
	t.Helper()
	synctest.Wait()
	ids, _ := w.Redis.ZMembers(base)
	if got := w.Redis.HGet(keyBase+"meta", "count"); got != "" && got != strconv.Itoa(len(ids)) {
		t.Errorf("count is %s, there are %d permits", got, len(ids))
	}
	quarantined := w.quarantined()
	held := make(map[string]int)
	for _, id := range ids {
		if id[19:23] != "8000" && !slices.Contains(quarantined, id) {
			held[id[:23]]++
		}
	}
	counted := w.held()
	for _, pool := range counted {
		if got := w.Redis.HGet(keyBase+"held", pool); got != strconv.Itoa(held[pool]) {
			t.Errorf("%s holds %d, counted %s", pool, held[pool], got)
		}
	}
	if len(held) > len(counted) {
		t.Errorf("%d pools hold permits, %d are counted", len(held), len(counted))
	}
	for _, id := range w.recordedPermits() {
		if !slices.Contains(ids, id) {
			t.Errorf("a backend is recorded for %s, which is not held", id)
		}
	}
}

// frozen returns a fleet at capacity 4: one session, which holds two permits, stops, and another
// waits.
func frozen(t *testing.T, w *world,
	cfg Config) (sleeper, awake *fencer, waiting *bubble.Pending[*Permit]) {
	t.Helper()
	cfg.Capacity, cfg.Patience = 4, forever
	pg := &postgres{}
	sleeper, awake = w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
	sleeper.open(2)
	awake.open(2)
	w.checkCounts(t)
	waiting = w.join(Config{Capacity: 4, Patience: forever}).later(t.Context())
	if waiting.IsDone() {
		t.Fatal("bug in the test: not at capacity")
	}
	sleeper.s.link.SetCut(true)
	return sleeper, awake, waiting
}
