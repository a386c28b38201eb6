// Package core is the engine's protocol as a value: what one session of the fleet believes, asks
// for and owes. It has no goroutine, clock, lock or I/O. A shell (package engine) tells it what
// happened and at what local time, sends what it wants sent, and carries out its effects:
//
//	            Submit, Release, Ask, ...       Flush: NextBatch, then BatchAnswered or BatchFailed
//	callers --------------------------->  Core  --------------------------------------------> Redis
//	        <---------------------------        <--------------------------------------------
//	            Effects                      ^  Heartbeat: NextCall, then CallAnswered or CallFailed
//	                                         |  Pushed
//	                                         | Tick, at WakeAt
//
// Every method is told now, the local monotonic time since the session began. After each, the shell
// takes the Effects.
//
// # What it keeps
//
//   - Held means proven. A permit is held until its trust ends, and Redis ends its lease only after
//     that (see trust.go). A permit becomes held only by a grant of its UUID to a request that
//     is not settled yet.
//   - Every UUID that Redis may count is held, asked for, among the drops, or lost and left to
//     expire. It is so until Redis has answered that it is gone, or its lease is over.
//   - Every request is settled: by a grant, a refusal, its caller's patience, or Close.
//   - Batches of a session never overlap. So a withdrawal reaches Redis after the request that it
//     withdraws.
//   - Pushes only save time. Whatever a push says, a later reply says too: see the table in
//     docs/PROTOCOL.md, "Pushes".
//
// ARCHITECTURE.md has the way of one acquire, and where to start reading.
package core

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The errors of the engine. Package semaphore shows them to its users.
var (
	ErrCapacity    = errors.New("semaphore: at capacity")
	ErrUnavailable = errors.New("semaphore: Redis is unavailable")
	ErrLost        = errors.New("semaphore: lease lost")
	ErrClosed      = errors.New("semaphore: closed")
)

// Unavailable is ErrUnavailable with its cause.
func Unavailable(cause error) error { return fmt.Errorf("%w: %w", ErrUnavailable, cause) }

// Config configures a Core.
type Config struct {
	Base          string // "<prefix>-<name>", for error texts
	Session       string // see SessionName
	TTL, Margin   time.Duration
	RetryInterval time.Duration
	Capacity      int
	Min, Max      int
	MaxWaiters    int
	Replicated    bool // grants are relied on only once this session's own call was acknowledged

	NewPermit func() *Permit                          // makes the shell's kind of permit
	NewEpoch  func() string                           // a new UUID
	Random    func(below time.Duration) time.Duration // from 0 to that, both included
}

// Core is the state of one session.
type Core struct {
	cfg Config
	fx  Effects

	info    string                   // for operators: see SetInfo
	permits map[string]*Permit       // held
	lost    map[string]time.Duration // lost, and not released since: until when that is known
	asked   map[string]*Request      // not settled, under each of their UUIDs
	lastID  uint64
	made    uint64 // requests that were ever submitted

	// The batch in flight, and what the next ones are made of.
	outbox       []*Request
	drops        []*Drop
	gaveBack     bool    // one of them gives back what Redis may count for the minimum
	failedDrops  []*Drop // to be sent again
	leftover     []*Drop // those that the script leave carries out
	offers       []offer
	inFlight     *Batch
	batchDue     time.Duration // when checkBatch looks at the batch in flight, 0: never
	roundTrip    time.Duration // of the last batch
	gone         bool          // Redis did not know the session when the last batch came
	needsCall    uint64        // nothing is sent before this call of the heartbeat was answered ...
	blockedSince time.Duration // ... and since when a batch waits for that, 0: none does
	retryAt      time.Duration // when what is unanswered is asked for again, 0: never

	heart     heart
	renewed   time.Duration // when the latest call was sent that was answered
	expireAt  time.Duration // when the earliest trust may end, 0: never
	listening listening

	pools                 []*Pool // those in the session
	numbers               int     // the highest number that a pool ever had
	vacant                []vacancy
	standing, withdrawing []*Pool    // by when: see tickPools
	waiting               []*Request // below Config.Max: see max.go
	wants                 int        // permits asked for and not settled, those in waiting excepted
	making                bool       // a pool was told to make room below Config.Max
	moveCost              time.Duration
	confirms              bool          // moveCost has to be sent at once
	toldAt                time.Duration // when a push last said that a request waits

	ending  map[string]*ending // see reaper.go
	looking bool

	// The latest that Redis said of the fleet.
	epoch       string
	sharded     bool
	capacity    int64
	limit       int64 // set by an operator, or 0
	min         int64 // kept for this session
	sessions    int64 // live ones, see countSessions
	sessionsAt  time.Duration
	anchor      anchor
	down        error         // why Redis did not answer the last call, or nil
	noMemory    bool          // Redis grants nothing new, although it answers
	memoryAt    int64         // Redis's time of the last word on that
	pause       string        // an operator's, see message.ParsePause; ""
	pausedUntil time.Duration // as last heard: by an operator, or because state was lost

	counts    Stats // its counters
	incidents incidents
	downSince time.Duration // while down is set
	justLost  []string      // UUIDs of leases lost in this step

	closed bool // nothing is acquired any more
	left   bool // nothing is sent any more
}

// New returns the state of a session that has not joined yet.
func New(cfg Config) *Core {
	return &Core{
		cfg:      cfg,
		permits:  make(map[string]*Permit),
		lost:     make(map[string]time.Duration),
		asked:    make(map[string]*Request),
		ending:   make(map[string]*ending),
		heart:    heart{calls: make(map[uint64]*Call)},
		capacity: int64(cfg.Capacity),
		min:      int64(cfg.Min),
	}
}

// Effects tell the shell what to do, once it holds no lock. Everything else a Core does by
// itself.
type Effects struct {
	Flush bool // start sending batches, unless that is under way
	// Resend is a batch to send once more, over another connection: its first may be dead.
	Resend    *Batch
	Heartbeat bool       // send a call of the heartbeat
	Replace   bool       // close the subscription, so that it is replaced
	Settled   []*Request // their callers go on
	Dropped   []*Drop    // the outcome of their first try is known
	Trust     []*Permit  // TrustedUntil or State has changed
	Events    []Event    // for pools, in this order
	End, Look []Record   // ask a pool that can to end these backends, or to look for them
	LookEpoch string
	LookSince int64 // of the push that asks to look
	Reaper    *Pool // the one to ask
	Logs      []Log
	Observed  []message.ObservationKind // of the session, or a permit that no pool holds
}

// A Log is a line for the operator.
type Log struct {
	Text string
	Args []any
}

func (c *Core) warn(text string, args ...any) {
	c.fx.Logs = append(c.fx.Logs, Log{text, append([]any{"semaphore", c.cfg.Base}, args...)})
}

// Take returns the effects since the last Take.
func (c *Core) Take() Effects {
	if n := len(c.justLost); n > 0 {
		c.warn("lease lost", "permits", n, "permit", c.justLost[0])
		c.justLost = nil
	}
	fx := c.fx
	fx.Flush = fx.Flush && c.inFlight == nil && !c.nothingToSend()
	c.fx = Effects{}
	return fx
}

// WakeAt is when Tick has to be called, 0 if never.
func (c *Core) WakeAt() time.Duration {
	at := time.Duration(0)
	for _, t := range [...]time.Duration{
		c.heart.due, c.expireAt, c.retryAt, c.batchDue, c.poolsDue(), c.blockedDue(),
	} {
		if t > 0 && (at == 0 || t < at) {
			at = t
		}
	}
	return at
}

// Tick does what is due. An early Tick does nothing.
func (c *Core) Tick(now time.Duration) {
	if c.expireAt > 0 && now >= c.expireAt {
		c.expire(now)
	}
	if c.left {
		return
	}
	if c.batchDue > 0 && now >= c.batchDue {
		c.checkBatch(now)
	}
	c.tickPools(now)
	if due := c.blockedDue(); due > 0 && now >= due {
		c.failBlocked(now, errSilent)
	}
	if c.retryAt > 0 && now >= c.retryAt {
		c.retryAt = 0
		c.repeat(now)
	}
	if c.heart.due > 0 && now >= c.heart.due {
		c.beatIfDue(now)
	}
}

// blockedDue is when what waits for a call of the heartbeat fails, 0: nothing waits.
func (c *Core) blockedDue() time.Duration {
	if c.blockedSince == 0 {
		return 0
	}
	return c.blockedSince + c.Silence()
}

// MaxRetryPause bounds the pause before what Redis did not answer is sent again.
const MaxRetryPause = 250 * time.Millisecond

// retryIn has Tick repeat, after a pause, what is unanswered: requests that wait, in case their grant was
// pushed and lost, and drops that failed. Jitter spreads the sessions.
func (c *Core) retryIn(now, pause time.Duration) {
	at := now + pause
	if c.closed || c.retryAt > 0 && c.retryAt <= at {
		return
	}
	if pause > 10*time.Millisecond {
		at += c.cfg.Random(pause / 8)
	}
	c.retryAt = at
}

// repeat puts everything unanswered back into the outbox, in the order in which it was asked for:
// Redis may have forgotten the order in its queue.
func (c *Core) repeat(now time.Duration) {
	c.drops = append(c.drops, c.failedDrops...)
	c.failedDrops = nil
	c.confirms = c.moveCost > 0
	for _, r := range c.Unsettled() {
		if !r.belowMax {
			c.enqueue(r)
		}
	}
	c.sortOutbox()
	c.flush(now)
}

func (c *Core) sortOutbox() {
	slices.SortFunc(c.outbox, func(a, b *Request) int { return cmp.Compare(a.number, b.number) })
}

// setDown notes whether Redis answers. It tells the pools if that changed, and reports whether it
// did.
func (c *Core) setDown(now time.Duration, err error) (changed bool) {
	changed = (err == nil) != (c.down == nil)
	c.down = err
	if changed && err != nil {
		c.downSince = now
		c.counts.Outages++
		c.fx.Observed = append(c.fx.Observed, message.ObservedDown)
	} else if changed {
		c.incidents.outage = max(c.incidents.outage, now-c.downSince)
		c.fx.Observed = append(c.fx.Observed, message.ObservedUp)
	}
	if changed {
		c.tellAll(Event{Kind: Changed})
	}
	return changed
}

// errNoMemory is why Redis grants nothing new.
var errNoMemory = errors.New("OOM: Redis has reached maxmemory: " +
	"leases are renewed, but nothing new is granted or queued")

// setNoMemory notes whether Redis was out of memory at that time of its clock. It tells the pools
// if that is news, and reports whether it is. Replies of the heartbeat and of batches come in any
// order.
func (c *Core) setNoMemory(full bool, at int64) (changed bool) {
	if at < c.memoryAt {
		return false
	}
	c.memoryAt = at
	if full == c.noMemory {
		return false
	}
	c.noMemory = full
	if full {
		c.warn("Redis has reached maxmemory: leases are renewed, but nothing new is granted")
	}
	c.tellAll(Event{Kind: Changed})
	return true
}

// anchor ties Redis's clock to ours: what Redis did at redis, in ms, happened locally at or after
// local.
type anchor struct {
	local time.Duration
	redis int64
}

// bound is the earliest local time at which Redis's clock can have shown t. It is never later than
// now.
func (a anchor) bound(t int64, now time.Duration) time.Duration {
	// -1: Redis's milliseconds are rounded down.
	return min(now, a.local+time.Duration(t-a.redis-1)*time.Millisecond)
}

// Expected is what Redis's clock should show now, in ms, or 0 if it was never heard of.
func (c *Core) Expected(now time.Duration) int64 {
	if c.anchor.redis == 0 {
		return 0
	}
	return c.anchor.redis + (now - c.anchor.local).Milliseconds()
}

func (c *Core) ttlMillis() int64 { return c.cfg.TTL.Milliseconds() }

// Until is the time from now to then, both in ms of Redis's clock. Anyone with access to Redis may
// have set then further off than a Duration reaches.
func Until(then, now int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Millisecond)
	return time.Duration(max(-most, min(then-now, most))) * time.Millisecond
}

// Err is why Redis cannot be asked now, matching ErrUnavailable, or nil.
func (c *Core) Err() error {
	switch {
	case c.down != nil:
		return Unavailable(c.down)
	case c.noMemory:
		return Unavailable(errNoMemory)
	}
	return nil
}

// For the shell to read.

func (c *Core) Epoch() string                { return c.epoch }
func (c *Core) Sharded() bool                { return c.sharded }
func (c *Core) Closed() bool                 { return c.closed }
func (c *Core) Left() bool                   { return c.left }
func (c *Core) Down() error                  { return c.down }
func (c *Core) RoundTrip() time.Duration     { return c.heart.rtt }
func (c *Core) Held() int                    { return len(c.permits) }
func (c *Core) KnownCapacity() int           { return max(int(c.capacity), c.cfg.Capacity) }
func (c *Core) CapacitySet(now, limit int64) { c.capacity, c.limit = now, limit }

// Unsettled are the requests that are not settled, in the order in which they were submitted.
func (c *Core) Unsettled() []*Request {
	list := make([]*Request, 0, len(c.asked))
	for id, r := range c.asked {
		if id == r.ids[0] {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *Request) int { return cmp.Compare(a.number, b.number) })
	return list
}

// Accounts reports whether the permit of that UUID is held, asked for, or still to be dropped.
// Redis may count no other one for this session but those that are lost, until their leases are
// over: see the package's comment.
func (c *Core) Accounts(id string) bool {
	if c.permits[id] != nil || c.asked[id] != nil {
		return true
	}
	names := func(d *Drop) bool { return slices.Contains(d.ids, id) }
	return slices.ContainsFunc(c.drops, names) || slices.ContainsFunc(c.failedDrops, names) ||
		c.inFlight != nil && slices.ContainsFunc(c.inFlight.drops, names)
}
