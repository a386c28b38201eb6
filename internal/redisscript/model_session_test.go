package redisscript

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is a session: the core that ships, in a shell that does what package
// engine does. There are no goroutines here: each thing that engine does in one is an occurrence.

// A session is one process of the fleet.
type session struct {
	name    string
	joining joining
	core    *core.Core
	random  *rand.Rand
	epochs  int           // epochs that it has proposed
	began   time.Duration // the world's time when its clock showed offset
	offset  time.Duration
	drift   time.Duration // ‰ by which its clock is fast
	timeout time.Duration // of a batch

	// Its process and its connections.
	dead, cut, paused bool
	leaves            bool          // it is being closed
	resumed           time.Duration // when it last went on
	held              []func()      // what happens once it goes on
	subscribed        bool          // as the server sees it
	refused           bool          // it cannot subscribe at present
	everSubscribed    bool
	mustAsk           time.Duration     // when it last had to ask again for all that waits
	lastPush          time.Duration     // when the last push arrives
	pushesLost        int               // how often those on their way were lost
	messages          int               // that it has sent
	travelling        int               // messages whose end it waits for
	forced            map[string][]luck // for its next messages, by a scenario
	trouble           int               // faults, and consequences of faults, so far
	troubleAt         time.Duration     // when the last of these was
	mishaps           []time.Duration   // when its messages were lost or late
	disturbedAt       time.Duration     // when the last other fault was

	permits    []*permit                // those held, lost, or asked for
	requests   []*request               // those that are not settled, in their order
	over       map[*core.Request]bool   // those that are settled
	ended      map[string]time.Duration // when a permit was released, or its request withdrawn
	dropping   []*dropping
	untold     []released
	pools      []*pool
	events     []core.Event // for pools that are not told yet
	delivering bool
	starting   bool // to send batches
	latest     *core.Batch
	sendings   map[*core.Batch]int  // how often each was sent, less how often that failed
	done       map[*core.Batch]bool // those that were answered, or have failed as often
	renewed    time.Duration        // when the latest call was sent that was answered
	answered   uint64               // the latest call that was answered
	applied    uint64               // the latest call whose answer it believes
	pauses     map[string]bool      // the pauses that this and later answers told of
	past       map[string]bool      // epochs of states that it knows to be lost
	// elsewhere: the latest answer, which came at elsewhereAt, is of a state that it does not know.
	elsewhere   bool
	elsewhereAt time.Duration
	unknown     bool   // Redis has refused a batch, and answered no call made since
	refusedAt   uint64 // the last call that was made before that
	refusals    int    // batches that were refused in a row
}

// A permit, and the backend that a pool has under it.
type permit struct {
	core.Permit
	heldWith   time.Duration // the trust that it had when it became held
	trusted    time.Duration // until when it was last trusted
	told       bool          // its pool knows that it holds it
	connecting bool          // its pool waits for a record
	covered    bool          // a backend was recorded, ever
	vacated    bool          // since then Redis has confirmed that it covers none
}

// local returns the time that a session's clock shows.
func (s *session) local(now time.Duration) time.Duration {
	d := now - s.began
	return s.offset + d + d/1000*s.drift
}

// world is the first time of the world at which a session's clock shows at least local.
func (s *session) world(local time.Duration) time.Duration {
	d := local - s.offset
	at := s.began + d*1000/(1000+s.drift)
	for s.local(at) < local {
		at += time.Microsecond
	}
	return at
}

// troubled notes a fault, or a consequence of one.
func (s *session) troubled(t *trial) {
	s.trouble++
	s.troubleAt = t.now
}

// disturbed notes a fault that is not of one message.
func (s *session) disturbed(t *trial) {
	s.troubled(t)
	s.disturbedAt = t.now
}

// all are the sessions that live.
func (t *trial) all() []*session {
	var list []*session
	for _, s := range t.sessions {
		if s != nil {
			list = append(list, s)
		}
	}
	return append(list, t.leaving...)
}

func (t *trial) named(name string) *session {
	for _, s := range t.all() {
		if s.name == name {
			return s
		}
	}
	return nil
}

// A joining holds the values that a session declares.
type joining struct {
	capacity, min, max, weight, maxWaiters int
	replicated                             bool
}

// join starts a session in a free slot.
func (t *trial) join(slot int, j joining) {
	t.born++
	s := &session{
		name:    fmt.Sprintf("%08x-%04x-8%02x0", 0xa0+slot, t.born, j.weight),
		joining: j, began: t.now,
		offset:  []time.Duration{time.Nanosecond, 7 * time.Millisecond, 3 * time.Hour}[t.born%3],
		timeout: max(t.plan.ttl-t.plan.ttl/10, 20*time.Millisecond),
		forced:  make(map[string][]luck), over: make(map[*core.Request]bool),
		ended: make(map[string]time.Duration), done: make(map[*core.Batch]bool),
		sendings: make(map[*core.Batch]int),
		pauses:   map[string]bool{"": true}, past: make(map[string]bool),
	}
	if t.plan.drifts {
		s.drift = time.Duration(t.born%3-1) * 5
	}
	s.random = t.chance(s.name)
	s.core = core.New(core.Config{
		Base: "p-n", Session: s.name, TTL: t.plan.ttl, Margin: t.plan.ttl / 10,
		RetryInterval: t.plan.retry, Capacity: j.capacity, Min: j.min, Max: j.max,
		MaxWaiters: j.maxWaiters, Replicated: j.replicated,
		NewPermit: func() *core.Permit {
			p := &permit{}
			p.Owner = p
			s.permits = append(s.permits, p)
			return &p.Permit
		},
		NewEpoch: func() string {
			s.epochs++
			return fmt.Sprintf("epoch-%s-%d", s.name, s.epochs)
		},
		Random: func(below time.Duration) time.Duration {
			return time.Duration(s.random.Int64N(int64(below) + 1))
		},
	})
	t.say("%s joins: %+v", s.name, j)
	t.unnoticed = t.unnoticed || t.set != t.lastSet && len(t.place.listeners()) == 0
	if t.firstCall(s) {
		t.sessions[slot] = s
		t.subscribe(s)
	}
}

// firstCall has a session join. It reports false if Redis refuses the session's minimum. The calls
// can be lost, but time does not pass.
func (t *trial) firstCall(s *session) bool {
	for tries := 0; ; tries++ {
		var k *core.Call
		t.step(s, func(c *core.Core, now time.Duration) { k = c.NextCall(now, nil) })
		l := t.luckOf(s, "join")
		if tries == 3 {
			l.fate = arrives
		}
		failed := func(err error) {
			t.step(s, func(c *core.Core, now time.Duration) { c.CallFailed(now, k, err) })
		}
		if l.fate == requestLost {
			failed(errLate)
			continue
		}
		got, err := t.renew(inOrder(k.X))
		switch {
		case errors.As(err, new(message.RefusedMin)):
			return false
		case l.fate == answerLost || l.fate == breaks:
			failed(errBroken)
		default:
			s.renewed = t.now
			s.pauses[got.Pause] = true
			t.step(s, func(c *core.Core, now time.Duration) {
				c.CallAnswered(now, k, got)
				c.Joined(now)
			})
			return true
		}
	}
}

// step is the only way to a core, as in package engine. It carries out all of its effects.
func (t *trial) step(s *session, f func(c *core.Core, now time.Duration)) {
	if s.dead {
		return
	}
	f(s.core, s.local(t.now))
	fx := s.core.Take()
	if s.core.Down() != nil {
		s.troubled(t)
	}
	t.noteTrust(s, fx)
	if !s.core.Left() {
		if fx.Flush && !s.starting {
			s.starting = true
			t.soon(s, func() { t.sendNext(s) })
		}
		if fx.Heartbeat {
			t.soon(s, func() { t.call(s) })
		}
		if fx.Resend != nil {
			t.soon(s, func() { t.sendBatch(s, fx.Resend, true, true) })
		}
		t.reap(s, fx)
	}
	if fx.Replace {
		t.soon(s, func() { t.replaceSubscription(s) })
	}
	s.events = append(s.events, fx.Events...)
	if len(s.events) > 0 && !s.delivering {
		s.delivering = true
		t.at(t.now+t.untilTold(s), s, func() { t.tellAll(s) })
	}
	for _, r := range fx.Settled {
		t.settled(s, r)
	}
	for _, r := range s.core.Unsettled() {
		if !slices.ContainsFunc(s.requests, func(q *request) bool { return q.Request == r }) {
			t.noteRequest(s, r)
		}
	}
	for _, d := range fx.Dropped {
		s.untold = slices.DeleteFunc(s.untold, func(r released) bool { return r.Drop == d })
	}
	for _, l := range fx.Logs {
		t.say("%s: %s %v", s.name, l.Text, l.Args[2:])
	}
}

// noteTrust notes until when permits are trusted, and checks the losses.
func (t *trial) noteTrust(s *session, fx core.Effects) {
	for _, changed := range fx.Trust {
		p := changed.Owner.(*permit)
		switch p.State() {
		case core.Lost:
			t.checkLoss(s, p, fx.Events)
		case core.Held:
			if p.trusted == 0 {
				p.heldWith = p.TrustedUntil() - s.local(t.now)
			}
		}
		p.trusted = p.TrustedUntil()
	}
}

func (t *trial) tick(s *session) { t.step(s, (*core.Core).Tick) }

// tickEarly calls a core before the time that it asks for.
func (t *trial) tickEarly(s *session) {
	wake := s.core.WakeAt()
	if s.paused || s.core.Left() || wake > 0 && wake <= s.local(t.now) {
		return
	}
	t.step(s, func(c *core.Core, now time.Duration) {
		c.Tick(now)
		t.checkEarly(s, wake, c.Take())
	})
}

// close begins to close a session. It leaves once its pools have given everything back, or after a
// while.
func (t *trial) close(slot int, hasty bool) {
	s := t.sessions[slot]
	t.say("%s closes", s.name)
	t.sessions[slot] = nil
	t.leaving = append(t.leaving, s)
	s.leaves = true
	if hasty { // the pools' connections are in use: they give nothing back before it leaves
		s.force("told", luck{there: time.Second})
	}
	t.step(s, func(c *core.Core, now time.Duration) { c.Close(now) })
	wait := 3 * time.Second
	if hasty {
		wait = 0
	}
	t.at(t.now+wait, s, func() { t.leave(s) })
}

// leaveIfReturned has those sessions leave that have given everything back.
func (t *trial) leaveIfReturned() {
	for _, s := range slices.Clone(t.leaving) {
		if !s.paused && !s.core.Left() && s.core.Returned() && len(s.events) == 0 {
			t.leave(s)
		}
	}
}

// leave ends a session. Messages on their way may bring back what the script removed: then the
// session leaves once more.
func (t *trial) leave(s *session) {
	if s.dead || s.core.Left() {
		return
	}
	var requests []string
	accountedFor := t.accountedFor(s)
	t.step(s, func(c *core.Core, now time.Duration) { requests = c.Leave(now) })
	crossing := s.core.Crossing()
	t.endsSoon(s, s.random.IntN(2) == 0)
	if !s.cut && t.luckOf(s, "leave").fate != requestLost {
		t.leaveScript(s, requests)
		if !crossing {
			t.checkLeft(s, accountedFor)
		}
	}
	if !crossing {
		t.gone(s)
		return
	}
	t.at(t.now+time.Second, s, func() {
		t.step(s, func(c *core.Core, _ time.Duration) {
			requests = append(requests, c.Leftover()...)
		})
		if !s.cut {
			t.leaveScript(s, requests)
			t.checkLeft(s, accountedFor)
		}
		t.gone(s)
	})
}

// accountedFor lists the permits of a session that it is about to leave behind free. A held permit
// under which it has recorded a backend stays counted: the pool may not have ended that in time.
func (t *trial) accountedFor(s *session) (list []string) {
	for _, id := range byScore(t.before.Permits) {
		p := s.permitOf(id)
		covers := p != nil && p.State() == core.Held && p.covered
		if s.core.Accounts(id) && !covers {
			list = append(list, id)
		}
	}
	return list
}

// gone ends what is left of a session.
func (t *trial) gone(s *session) {
	s.dead = true
	t.loseSubscription(s)
	t.leaving = slices.DeleteFunc(t.leaving, func(other *session) bool { return other == s })
}

// crash ends a session as SIGKILL does. Its connections end with it, at once or a moment later, and
// Redis hears nothing.
func (t *trial) crash(slot int, atOnce bool) {
	s := t.sessions[slot]
	t.say("%s crashes", s.name)
	t.sessions[slot] = nil
	t.endsSoon(s, atOnce)
	t.gone(s)
}
