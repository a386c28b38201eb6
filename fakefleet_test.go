package passbuddy

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/semaphore"
)

// fakeFleet is an engine with one pool and any number of permits up to its capacity.
type fakeFleet struct {
	session  *engine.Session
	mu       sync.Mutex
	capacity int
	held     int
	want     int
	stock    []*engine.Permit
	out      []*engine.Permit
	flying   bool // one grant at a time, like the engine
	a        *allotment.Allotment
	err      error
	left     int
}

// newFleet returns a fleet with real permits, because the allotment checks their leases.
func newFleet(t testing.TB, capacity int) *fakeFleet {
	t.Helper()
	const most = 16
	m := miniredis.NewMiniRedis()
	client := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Protocol: 2, DisableIdentity: true,
		Dialer: func(context.Context, string, string) (net.Conn, error) { return m.Dial() },
	})
	sem, err := semaphore.New(context.Background(), client,
		semaphore.Config{Capacity: most, TTL: 24 * time.Hour,
			Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	permits, err := sem.Engine(engine.Seam{}).AcquireN(context.Background(), engine.Wait, most)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sem.Close(); err != nil {
			t.Error(err)
		}
		_ = client.Close()
		// a test has a fake clock, and its bubble must be empty at its end
		if _, real := t.(*testing.B); !real {
			// go-redis's dialling goroutines check once a second whether their pool is closed
			time.Sleep(2 * time.Second)
		}
		m.Close()
	})
	return &fakeFleet{capacity: capacity, stock: permits, session: sem.Engine(engine.Seam{})}
}

func (f *fakeFleet) source() engineSource {
	return func(a *allotment.Allotment) error {
		f.a = a
		a.Attach(f)
		return nil
	}
}

func (f *fakeFleet) Close() { f.mu.Lock(); f.left++; f.mu.Unlock() }

func (f *fakeFleet) Ask(n int) {
	f.mu.Lock()
	f.want = n
	f.grant()
	f.mu.Unlock()
}

// grant delivers in the background, because the allotment's lock may be held. The caller holds
// f.mu.
func (f *fakeFleet) grant() {
	n := min(f.want, f.capacity-f.held)
	if n <= 0 || f.err != nil || f.flying {
		return
	}
	f.flying = true
	f.held += n
	f.want -= n
	permits := slices.Clone(f.stock[:n])
	f.stock = f.stock[n:]
	f.out = append(f.out, permits...)
	go func() {
		f.a.Granted(permits)
		f.mu.Lock()
		f.flying = false
		f.grant()
		f.mu.Unlock()
	}()
}

func (f *fakeFleet) Give(p *engine.Permit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.out)
	f.out = slices.DeleteFunc(f.out, func(q *engine.Permit) bool { return p == q })
	if len(f.out) == n {
		return // lost, see lose
	}
	f.stock = append(f.stock, p)
	f.held--
	f.grant()
}

func (f *fakeFleet) Offer(int)           {}
func (f *fakeFleet) Moved(time.Duration) {}
func (f *fakeFleet) Stay(bool)           {}

func (f *fakeFleet) Try(context.Context) (*engine.Permit, error) {
	return nil, semaphore.ErrCapacity
}

func (f *fakeFleet) RecordBackend(*engine.Permit, string) func(context.Context) error {
	return func(context.Context) error { return nil }
}

func (f *fakeFleet) ClearBackend(*engine.Permit) func(context.Context) error { return nil }

func (f *fakeFleet) Full() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held >= f.capacity
}

func (f *fakeFleet) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeFleet) AtCapacity() error { return semaphore.ErrCapacity }

func (f *fakeFleet) holds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// take recalls n permits, which the fleet keeps once they are given back.
func (f *fakeFleet) take(n int) {
	f.mu.Lock()
	f.capacity -= n
	f.mu.Unlock()
	f.a.Promised(n)
}

// giveBack undoes take.
func (f *fakeFleet) giveBack(n int) {
	f.mu.Lock()
	f.capacity += n
	f.grant()
	f.mu.Unlock()
}

// lose ends all leases.
func (f *fakeFleet) lose(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	lost := f.out
	f.out = nil
	f.held -= len(lost)
	f.mu.Unlock()
	for _, p := range lost {
		f.a.Lost(p)
	}
}
