package passbuddytest

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
	"github.com/passbuddy/passbuddy/semaphore"
)

// A Config has the settings of the sessions that a Fleet opens: see semaphore.Config. The zero
// value of every field means the default that is documented there, except for two. Owner is
// "process 1", then "process 2"; Logger writes to the test's log.
type Config = semaphore.Config

// A Fleet is a Redis of its own, and the processes that share it. All methods can be called
// concurrently, but for what testing.TB forbids. A method that cannot do its work ends the test
// that it is given, as t.Fatal does.
type Fleet struct {
	cfg       Config
	redis     *miniredis.Miniredis
	network   *network
	client    *redis.Client // no fault affects it
	keys      redisscript.Keys
	inspector *semaphore.Inspector
	bubbled   bool

	mu       sync.Mutex
	opened   int // by Semaphore
	sessions map[string]*semaphore.Semaphore
	clients  map[redis.UniversalClient]bool // that Client and Semaphore have made
	listener *listener                      // nil until URL is called
	wasDown  bool
}

// New returns a fleet without a process. It ends the test if cfg has a field that semaphore.Config
// refuses. Everything ends with the test t, which can be a test, a benchmark or a fuzz target, or
// be in a bubble.
func New(t testing.TB, cfg Config) *Fleet {
	if t == nil {
		panic("passbuddytest: New: t is nil: give it the *testing.T of the test")
	}
	t.Helper()
	if err := check(cfg); err != nil {
		t.Fatalf("passbuddytest: New: %v", err)
	}
	m := miniredis.NewMiniRedis()
	f := &Fleet{
		cfg: cfg, redis: m, network: newNetwork(m), bubbled: inBubble(),
		sessions: make(map[string]*semaphore.Semaphore),
		clients:  make(map[redis.UniversalClient]bool),
	}
	f.client = f.network.newLink(true).client()
	prefix := cmp.Or(cfg.Prefix, semaphore.DefaultPrefix)
	name := cmp.Or(cfg.Name, semaphore.DefaultName)
	f.keys = redisscript.NewKeys(prefix + "-" + name)
	var err error
	if f.inspector, err = semaphore.NewInspector(f.client, prefix, name); err != nil {
		t.Fatalf("passbuddytest: New: %v", err)
	}
	t.Cleanup(f.end)
	return f
}

// check returns why semaphore.New would refuse cfg. It opens nothing: semaphore.New looks at the
// Config first, and at the client, which is nil, second.
func check(cfg Config) error {
	refusal := func(cfg Config) error {
		_, err := semaphore.New(context.Background(), (*redis.Client)(nil), cfg)
		return err
	}
	if err := refusal(cfg); err.Error() != refusal(Config{}).Error() {
		return err
	}
	return nil
}

// end ends what is left. Cleanups run last in, first out: all that Semaphore, Client and Exhaust
// have opened is closed by now.
func (f *Fleet) end() {
	f.mu.Lock()
	l := f.listener
	f.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
	_ = f.client.Close()
	f.network.close()
	if f.bubbled {
		// When all dials of a client have failed for a while, go-redis tries again once a second in
		// a goroutine, which ends when it finds the client closed. A bubble has to be empty at its
		// end, and its clock stops with the test.
		time.Sleep(2 * time.Second)
	}
	f.redis.Close()
}

// inBubble reports whether the caller is in a bubble of testing/synctest. The clock there begins at
// the year 2000.
func inBubble() bool { return time.Now().Year() < 2020 }

// here ends the test if its clock is not the fleet's.
func (f *Fleet) here(t testing.TB, method string) {
	t.Helper()
	if in := inBubble(); in != f.bubbled {
		where := map[bool]string{true: "inside", false: "outside"}
		t.Fatalf("passbuddytest: %s is called %s a synctest bubble, but New was called %s: "+
			"make the fleet where it is used", method, where[in], where[f.bubbled])
	}
}

// Semaphore opens a session, as a process does when it starts. Each call pretends another process.
// The session is closed at the end of the test t, if the test has not closed it by then. A session
// with other settings than the fleet's is opened by semaphore.New over Client.
func (f *Fleet) Semaphore(t testing.TB) *semaphore.Semaphore {
	t.Helper()
	f.here(t, "Semaphore")
	f.mu.Lock()
	f.opened++
	cfg, number := f.cfg, f.opened
	f.mu.Unlock()
	cfg.Owner = cmp.Or(cfg.Owner, fmt.Sprintf("process %d", number))
	log := &testLog{t: t}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	}
	sem, end, err := f.open(context.Background(), cfg)
	if err != nil {
		t.Fatalf("passbuddytest: Semaphore: %v", err)
	}
	t.Cleanup(func() {
		defer log.ended.Store(true)
		if err := end(); err != nil {
			t.Errorf("passbuddytest: close the semaphore of %s: %v", cfg.Owner, err)
		}
	})
	return sem
}

// open opens a session on a link of its own. end closes it, whatever fault is in force.
func (f *Fleet) open(ctx context.Context, cfg Config) (
	sem *semaphore.Semaphore, end func() error, err error,
) {
	link := f.network.newLink(false)
	client := link.client()
	if sem, err = semaphore.New(ctx, client, cfg); err != nil {
		_ = client.Close()
		return nil, nil, err
	}
	id := sessionOf(sem)
	f.mu.Lock()
	f.sessions[id] = sem
	f.clients[client] = true
	f.mu.Unlock()
	return sem, func() error {
		link.setExempt()
		err := sem.Close()
		_ = client.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sessions, id)
		delete(f.clients, client)
		if f.wasDown {
			return nil // go-redis may refuse to dial for a second after an outage
		}
		return err
	}, nil
}

// sessionOf is the name of a session: each UUID of a permit begins with it.
func sessionOf(sem *semaphore.Semaphore) string { return sem.NewPermit().ID()[:18] }

// Client returns a client of the fleet's Redis, for code that opens its own semaphore:
//
//	sem, err := semaphore.New(ctx, f.Client(t), semaphore.Config{Name: "orders", Capacity: 2})
//
// Prefix and Name have to be the fleet's for RequireHeld and the like to see that session. The code
// closes what it has opened; the client is closed at the end of the test.
func (f *Fleet) Client(t testing.TB) *redis.Client {
	t.Helper()
	f.here(t, "Client")
	client := f.network.newLink(false).client()
	f.mu.Lock()
	f.clients[client] = true
	f.mu.Unlock()
	t.Cleanup(func() {
		_ = client.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.clients, client)
	})
	return client
}

// patience bounds each wait for what has to happen. It is long: a machine can be slow.
func (f *Fleet) patience() time.Duration {
	return 10*time.Second + 2*cmp.Or(f.cfg.TTL, semaphore.DefaultTTL)
}

// testLog writes to the log of a test, until that has ended.
type testLog struct {
	t     testing.TB
	ended atomic.Bool
}

func (l *testLog) Write(b []byte) (int, error) {
	if l.ended.Load() {
		return len(b), nil
	}
	return l.t.Output().Write(b)
}
