package engine

import (
	"cmp"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

const (
	base    = "passbuddy-semaphore" // the sorted set of permits
	keyBase = "{" + base + "}:"     // of all other keys

	// The configuration of a session that does not say otherwise.
	defaultTTL   = 5 * time.Second
	defaultRetry = 500 * time.Millisecond
)

// A world is a bubble.World with sessions of this package.
type world struct{ *bubble.World }

// inWorld runs f in a bubble with a Redis of its own.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	bubble.Run(t, func(t *testing.T, w *bubble.World) { f(t, &world{w}) })
}

// filled returns cfg with the tests' defaults, which are those of package semaphore.
func filled(cfg Config) Config {
	cfg.Base, cfg.Info = base, message.SessionInfo{Owner: "test"}
	cfg.Weight = max(cfg.Weight, 1)
	cfg.TTL = cmp.Or(cfg.TTL, defaultTTL)
	cfg.RetryInterval = cmp.Or(cfg.RetryInterval, defaultRetry)
	cfg.Patience = cmp.Or(cfg.Patience, 5*cfg.RetryInterval)
	if cfg.Patience == forever {
		cfg.Patience = 0
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// forever is the Patience of a session whose waits only the context bounds.
const forever time.Duration = -1

// session is a session with its own client and link.
type session struct {
	*Session
	link   *bubble.Link
	client *redis.Client
}

// join opens a session. It closes with the bubble, unless the test has closed or crashed it.
func (w *world) join(cfg Config) *session {
	w.T.Helper()
	c, l := w.Client()
	out := &session{Session: w.open(c, cfg), link: l, client: c}
	w.T.Cleanup(out.crash)
	return out
}

func (w *world) open(c redis.UniversalClient, cfg Config) *Session {
	w.T.Helper()
	s, err := Open(context.Background(), c, false, filled(cfg))
	if err != nil {
		w.T.Fatalf("Open: %v", err)
	}
	return s
}

// crash ends the session as SIGKILL would: it sends nothing to Redis.
func (s *session) crash() {
	s.link.SetCut(true)
	_ = s.Close()
	_ = s.client.Close()
}

// slowJoin opens a session over a network with that delay each way.
func (w *world) slowJoin(cfg Config, delay func() time.Duration) (*session, *bubble.SlowLink) {
	w.T.Helper()
	l := w.SlowLink(delay)
	c := redis.NewClient(&redis.Options{Addr: bubble.Addr, Dialer: l.Dial, DialerRetries: 1})
	s := w.open(c, cfg)
	w.T.Cleanup(func() {
		l.SetDelay(bubble.Always(0))
		_ = s.Close()
		_ = c.Close()
	})
	return &session{Session: s, client: c}, l
}

// stallJoin opens a session over a network that can stall.
func (w *world) stallJoin(cfg Config) (*session, *bubble.StallLink) {
	w.T.Helper()
	l := w.StallLink()
	c := redis.NewClient(&redis.Options{
		Addr: bubble.Addr, Dialer: l.Dialer(min(5*time.Second, filled(cfg).TTL/4)), Protocol: 2,
		DisableIdentity: true, DialerRetries: 1,
	})
	s := w.open(c, cfg)
	w.T.Cleanup(func() {
		l.Stall(false)
		_ = s.Close()
		_ = c.Close()
	})
	return &session{Session: s, client: c}, l
}

// get acquires a permit. It waits in the queue for as long as ctx, and the session's Patience,
// allow.
func (s *Session) get(ctx context.Context) (*Permit, error) {
	p := s.NewPermit()
	return p, s.Acquire(ctx, Wait, p)
}

// try acquires a permit without waiting.
func (s *Session) try(ctx context.Context) (*Permit, error) {
	p := s.NewPermit()
	return p, s.Acquire(ctx, Try, p)
}

// acquire acquires a permit within the session's Patience or fails.
func (s *session) acquire(t *testing.T) *Permit {
	t.Helper()
	p, err := s.get(t.Context())
	if err != nil {
		t.Fatalf("Acquire: %v", err)
	}
	return p
}

// later acquires a permit, and returns once all goroutines of the bubble wait.
func (s *session) later(ctx context.Context) *bubble.Pending[*Permit] {
	return bubble.Later(func() (*Permit, error) { return s.get(ctx) })
}

func release(t *testing.T, p *Permit) {
	t.Helper()
	if err := giveUp(p); err != nil {
		t.Fatalf("Release: %v", err)
	}
}

// giveUp releases p.
func giveUp(p *Permit) error { return p.s.Release(p, func() bool { return true }) }

// A state counts what is in Redis.
type state struct{ Capacity, Held, Quarantined, Waiters, Sessions int }

func (s *session) state(t *testing.T) state {
	t.Helper()
	raw, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return stateOf(raw)
}

func stateOf(raw message.Snapshot) state {
	return state{Capacity: int(raw.Capacity), Held: len(raw.Permits),
		Quarantined: len(raw.Quarantined),
		Waiters:     len(raw.Queue), Sessions: len(raw.Sessions)}
}

// seated returns how many pools have a number.
func (s *session) seated() int {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.core.Pools())
}

// loseSubscription ends the subscription for good. The rest of the session goes on.
func (s *session) loseSubscription(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	ps := s.pubsub
	s.mu.Unlock()
	if err := ps.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// A pool is a connection pool of a session, and its Listener.
type pool struct {
	*Pool
	bubble.Listener[*Permit]
}

func (s *session) pool(t *testing.T) *pool {
	t.Helper()
	p := &pool{}
	p.join(t, s, p)
	return p
}

// join adds p to s. l is p, or a Listener that has p.
func (p *pool) join(t *testing.T, s *session, l Listener) {
	t.Helper()
	var err error
	if p.Pool, err = s.NewPool(l); err != nil {
		t.Fatal(err)
	}
	p.Return = p.Pool.Give
}

// want asks until the pool holds n permits.
func (p *pool) want(n int) {
	for range 20 {
		if p.Ask(max(0, n-len(p.Permits()))); len(p.Permits()) == n {
			break
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
	}
	time.Sleep(2 * withdrawAfter)
	synctest.Wait()
}

// withdrawAfter is how long the request of a pool outlives its last waiter: core.withdrawAfter.
const withdrawAfter = 25 * time.Millisecond

// poolName returns the name of the pool that p belongs to, and its number in the session.
func poolName(p *Permit) string   { return p.ID[:23] }
func poolNumber(p *Permit) string { return p.ID[20:23] }

// quarantined lists the permits in quarantine.
func (w *world) quarantined() []string {
	ids, _ := w.Redis.HKeys(keyBase + "quarantine")
	return ids
}

// logged returns the details of the events of a kind.
func (w *world) logged(kind string) (details []string) {
	entries, _ := w.Redis.Stream(keyBase + "events")
	for _, e := range entries {
		fields := make(map[string]string)
		for i := 1; i < len(e.Values); i += 2 {
			fields[e.Values[i-1]] = e.Values[i]
		}
		if fields["kind"] == kind {
			details = append(details, fields["detail"])
		}
	}
	return details
}

// held lists the pools for which Redis counts permits.
func (w *world) held() []string {
	names, _ := w.Redis.HKeys(keyBase + "held")
	return names
}

// expire ends the lease of p in Redis alone, and has a script notice it.
func (w *world) expire(t *testing.T, s *session, p *Permit) {
	t.Helper()
	if _, err := w.Redis.ZAdd(base, 1, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCapacity(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

// hook runs do before each call of a script that match accepts.
type hook struct {
	match func(cmd redis.Cmder) bool
	do    func(cmd redis.Cmder)
}

func (hook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.match(cmd) {
			h.do(cmd)
			ctx = context.WithoutCancel(ctx) // Redis receives it, however late
		}
		return next(ctx, cmd)
	}
}
func (hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// beforeHeartbeats runs do after each call is built and before it is sent.
func (s *session) beforeHeartbeats(do func(redis.Cmder)) {
	s.clients.own.(*redis.Client).AddHook(hook{func(cmd redis.Cmder) bool {
		args := cmd.Args()
		return len(args) > 1 && args[1] == redisscript.RenewHash()
	}, do})
}

// beforeBatches runs do after each batch is built and before it is sent.
func (s *session) beforeBatches(do func(redis.Cmder)) {
	s.clients.batches.(*redis.Client).AddHook(hook{func(cmd redis.Cmder) bool {
		return cmd.Name() == "evalsha"
	}, do})
}
