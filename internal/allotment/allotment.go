package allotment

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"
	"github.com/passbuddy/passbuddy/internal/message"
)

// Engine is the engine as an allotment sees it: an [*engine.Pool], which says what the methods do.
// No method but Try blocks, and each of the others may be called with the allotment's lock held.
type Engine interface {
	Ask(n int)                // want n permits more; a level, not an increment
	Give(p *engine.Permit)    // release it, off the caller's path
	Offer(n int)              // n permits lie unused: does any pool need them?
	Moved(cost time.Duration) // what it has just cost to move a permit here
	Stay(yes bool)            // stay in the session, without a permit or a wish for one
	Full() bool               // Redis has answered the last Ask, and had nothing free
	Err() error               // why the engine cannot ask Redis now, or nil
	AtCapacity() error        // the error of a caller that waited in vain: who paused the fleet, maybe
	Try(ctx context.Context) (*engine.Permit, error)
	Close() // leave the session, once the last permit is given back

	// For Options.Fence.
	RecordBackend(p *engine.Permit, tag string) record
	ClearBackend(p *engine.Permit) record
}

// Pool is the integration's side. Both methods run without the allotment's lock.
type Pool interface {
	// Evict ends one connection that lies idle in the pool, through [Allotment.EvictIdle] or
	// [Slot.Evict], and reports whether it found one. It may block for a bounded time.
	Evict() bool
	// Abort ends the connection of s, whoever uses it: its lease is lost.
	Abort(s *Slot)
}

// Options come from the users of the two integrations.
type Options struct {
	AcquireTimeout time.Duration // longest wait for a turn; the caller's ctx may end it earlier
	KeepOnLoss     bool          // keep open connections whose lease is lost, open no new ones
	FallbackConns  int           // connections this process may hold while Redis cannot be asked
	Fence          bool          // backends are recorded (backend.go); not with the two above
	MaxConns       int           // connections the pool can hold: the most permits it asks for; 0: any number
	PerCheckout    bool          // a permit covers a checkout, and a slot is one
	Name           string        // of the pool, for people; see Report
}

// DefaultAcquireTimeout is AcquireTimeout where that is zero.
const DefaultAcquireTimeout = 30 * time.Second

// Resolve returns o with its defaults filled in, or an error that names the field of the user's
// Config that is refused.
func (o Options) Resolve() (Options, error) {
	if o.AcquireTimeout == 0 {
		o.AcquireTimeout = DefaultAcquireTimeout
	}
	refused := func(format string, args ...any) (Options, error) {
		return o, fmt.Errorf("passbuddy: Config."+format, args...)
	}
	switch {
	case o.AcquireTimeout < 0:
		return refused("AcquireTimeout is %v: it must not be negative", o.AcquireTimeout)
	case o.FallbackConns < 0:
		return refused("FallbackConns is %d: it must not be negative", o.FallbackConns)
	case o.Fence && o.PerCheckout:
		return refused("Fence with Config.Scope PerCheckout: " +
			"only the permits of PerConnection cover a backend")
	case o.Fence && o.KeepOnLoss:
		return refused("Fence and Config.KeepOnLoss: the one ends the connections that the other keeps")
	case o.Fence && o.FallbackConns > 0:
		return refused("Fence and Config.FallbackConns: the one ends the connections that the other keeps")
	}
	return o, nil
}

// Allotment is the state of one pool. Its zero value is not usable; see New. Unexported methods,
// those of Slot too, are called with mu held, unless they say that they take it.
type Allotment struct {
	engine Engine
	pool   Pool
	opts   Options
	// observe is told what happens, or nil. Join sets it, holders and name, before the first Enter.
	observe func(message.Observation)
	// holders is the session's word on connections that stay out of their pools, or nil.
	holders func() (fleet, here string)
	name    string

	mu sync.Mutex

	// Guarded by mu.
	slots    slots
	permits  permits
	debts    debts
	all      map[*Slot]struct{}
	emptied  chan struct{} // see Emptied; nil: nobody waits for it
	idle     ring[Slot]    // of idle slots, most recently returned first
	waiters  queue         // callers that wait for a turn
	openers  queue         // callers with a turn that wait for a spare permit
	backlog  backlog
	costs    costs
	offers   offers
	patience patience
	doubts   doubts
	counted  message.PoolFigures // those that count up; see Report

	dialing     time.Time   // since when connections are being opened without a break
	timer       *time.Timer // settles, at timerAt: see settleIn
	timerAt     time.Time
	searching   bool      // a goroutine is in search
	stays       bool      // what the engine was told last: see ask
	outside     int       // connections beyond MaxConns: see SetOutside
	hijacked    int       // see countHijacked
	usedAt      time.Time // PerCheckout: when a permit was last in use
	grantedAt   time.Time // when the last grant arrived
	redisBackAt time.Time // when Redis came back after it could not be asked
	closed      bool
}

// New returns an allotment without permits. Join or Attach must follow before it is used.
func New(pool Pool, opts Options) *Allotment {
	a := &Allotment{pool: pool, opts: opts, all: make(map[*Slot]struct{})}
	a.name = cleanName(opts.Name)
	a.doubts.suspects = make(map[*Slot]*Suspect)
	a.idle.init()
	a.waiters.init()
	a.openers.init()
	return a
}

// Join connects the allotment to the engine. It, or Attach, is called once, before the first Enter.
// Join holds the lock all along: what the engine tells the new pool meanwhile waits until the
// allotment can answer.
func (a *Allotment) Join(session *engine.Session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	pool, err := session.NewPool(a)
	if err != nil {
		return fmt.Errorf("passbuddy: %w", err)
	}
	a.engine = pool
	a.name, a.holders = pool.Name(a.name), session.Holders
	if session.Observed() {
		a.observe = session.Observe
	}
	return nil
}

// Attach is Join for an engine that is there already.
func (a *Allotment) Attach(e Engine) {
	a.mu.Lock()
	a.engine = e
	a.mu.Unlock()
}

// Close takes the allotment out of the engine, once it holds nothing.
func (a *Allotment) Close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.engine.Close()
}

// owned is how many permits this pool has.
func (a *Allotment) owned() int { return a.permits.spares() + a.slots.all() }

// kept is how many of them nobody has asked back. Those whose recall is deferred count as kept.
func (a *Allotment) kept() int { return a.owned() - a.debts.pending() }

// available is how many turns could be given now. It can be below zero for a moment, when a pool
// destroys connections on its own: the next returns make up for it.
//
// The turn of the caller that opens a slot covers that slot. A slot whose caller gave up, or that
// the pool opens in the background, is covered by no turn; nobody is on the way to it.
func (a *Allotment) available() int {
	return a.permits.spares() + a.slots.n[idle] - a.debts.evicting - a.slots.coming()
}

// Figures is a count of the allotment at one instant, for tests and for operators.
type Figures struct {
	Owned, Spare, Turns, Waiting, Owed int
	Opening, Idle, Out, Leaving        int
}

// Figures counts.
func (a *Allotment) Figures() Figures {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := &a.slots.n
	return Figures{
		Owned: a.owned(), Spare: len(a.permits.spare), Turns: a.slots.turns,
		Waiting: a.waiters.n, Owed: a.debts.pending(),
		Opening: n[opening], Idle: n[idle], Out: n[out], Leaving: n[leaving],
	}
}
