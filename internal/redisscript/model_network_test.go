package redisscript

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is time and the network. Nothing happens but what is in trial.ahead, and the
// ticks that cores ask for. The time of the world moves on from one to the next.

// An occurrence is something that will happen.
type occurrence struct {
	at time.Duration
	of *session // whose process has to run for it, or nil
	do func()
}

// at has do happen at a time, after all that is to happen at that time already.
func (t *trial) at(when time.Duration, of *session, do func()) {
	when = max(when, t.now)
	i, _ := slices.BinarySearchFunc(t.ahead, when, func(o occurrence, when time.Duration) int {
		if o.at <= when {
			return -1
		}
		return 1
	})
	t.ahead = slices.Insert(t.ahead, i, occurrence{when, of, do})
}

// soon has do happen now, once what happens at this moment is over.
func (t *trial) soon(of *session, do func()) { t.at(t.now, of, do) }

// At one moment no more than so much happens, and no core is called by its own wish more often.
const maxOccurrences, maxTicks = 2000, 50

// until lets all happen that happens until a time.
func (t *trial) until(end time.Duration) {
	occurrences, ticks := 0, 0
	for {
		next, ticking := end+1, (*session)(nil)
		if len(t.ahead) > 0 {
			next = t.ahead[0].at
		}
		for _, s := range t.all() {
			if at, ok := t.tickAt(s); ok && at < next {
				next, ticking = at, s
			}
		}
		if next > t.now {
			occurrences, ticks = 0, 0
			t.checkPrompt()
		}
		if next > end {
			t.now = end
			return
		}
		t.now = max(t.now, next)
		if ticking != nil {
			if ticks++; ticks > maxTicks {
				t.failf("prompt: %s wants to be called again and again at one moment", ticking.name)
			}
			t.tick(ticking)
		} else {
			if occurrences++; occurrences > maxOccurrences {
				t.failf("prompt: the same is said to Redis again and again at one moment")
			}
			o := t.ahead[0]
			t.ahead = t.ahead[1:]
			switch s := o.of; {
			case s == nil:
				o.do()
			case s.dead:
			case s.paused:
				s.held = append(s.held, o.do)
			default:
				o.do()
			}
		}
		t.checkNow()
	}
}

// A fate is what becomes of a message on its way.
type fate int

const (
	arrives     fate = iota
	slow             // its way takes long, there or back
	requestLost      // its sender waits until it has waited long enough
	answerLost
	breaks  // the connection breaks, before or after Redis has read the message
	doubled // Redis executes it twice, as after a retry of the client's
	strayed // its sender gives it up, and it arrives all the same, much later
	echoed  // its answer, or the push, arrives twice
)

var fates = [...]string{"", ", slow", ", request lost", ", answer lost", ", connection breaks", ", sent twice", ", strayed", ", heard twice"}

// luck is what becomes of one message. It follows from the seed and the message's number alone: when steps of
// a history are left out, the others keep theirs, more or less.
type luck struct {
	fate         fate
	there, back  time.Duration // how long it takes
	later        time.Duration // strayed: when it arrives; echoed: when it is heard again
	beforeRedis  bool          // breaks: before Redis has read it
	countsAsWell bool          // it went as messages usually go
}

func (t *trial) chance(key string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	return rand.New(rand.NewPCG(t.plan.seed, h.Sum64()))
}

func (t *trial) luckOf(s *session, what string) luck {
	s.messages++
	l := luck{there: t.plan.roundTrip / 2, back: t.plan.roundTrip / 2, countsAsWell: true}
	if t.calm {
		return luck{countsAsWell: true}
	}
	key := fmt.Sprintf("%s: %s %d", short(s.name), what, s.messages)
	r := t.chance(key)
	if late := s.crosses[what]; late > 0 {
		delete(s.crosses, what)
		l.fate, l.countsAsWell = slow, false
		l.back += late
		return l
	}
	if r.IntN(100) >= t.plan.faults || t.plan.calmed[key] {
		return l
	}
	t.faults = append(t.faults, key)
	l.countsAsWell = false
	some := func() time.Duration {
		long := []time.Duration{time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond,
			t.plan.ttl / 4, t.plan.ttl / 2, t.plan.ttl, t.plan.ttl * 3 / 2}
		return long[r.IntN(len(long))]
	}
	switch n := r.IntN(100); {
	case n < 40:
		l.fate = slow
		if r.IntN(2) == 0 {
			l.there += some()
		} else {
			l.back += some()
		}
		if r.IntN(4) == 0 {
			l.back += some()
		}
	case n < 52:
		l.fate = requestLost
	case n < 64:
		l.fate = answerLost
	case n < 76:
		l.fate, l.beforeRedis = breaks, r.IntN(2) == 0
	case n < 86:
		l.fate = doubled
	case n < 94 && t.plan.late:
		l.fate, l.later = strayed, t.plan.ttl/10+time.Duration(r.Int64N(int64(t.plan.ttl*19/10)))
	default:
		l.fate, l.later = echoed, some()
	}
	return l
}

var (
	errLate   = errors.New("no answer in time")
	errBroken = errors.New("connection is broken")
)

// send carries a call to Redis, where run executes it, and its answer back. One of answered and failed is
// called at last, unless the process of s ends.
func (t *trial) send(s *session, l luck, limit time.Duration, run, answered func(), failed func(error)) {
	s.travelling++
	if !l.countsAsWell {
		s.troubled(t)
	}
	over := false
	end := func(how func()) {
		if over {
			return
		}
		over = true
		s.travelling--
		if !l.countsAsWell {
			s.troubled(t)
		}
		how()
	}
	t.at(t.now+limit, s, func() { end(func() { failed(errLate) }) })
	if s.cut {
		if s.messages%2 == 0 {
			t.soon(s, func() { end(func() { failed(errBroken) }) })
		}
		return
	}
	comesBack := func() {
		if s.cut {
			return
		}
		end(answered)
		if l.fate == echoed {
			t.at(t.now+l.later, s, func() {
				if !s.cut {
					answered()
				}
			})
		}
	}
	switch l.fate {
	case requestLost:
	case answerLost:
		t.execute(l.there, run)
	case breaks:
		if !l.beforeRedis {
			t.execute(l.there, run)
		}
		t.at(t.now+l.there+l.back, s, func() { end(func() { failed(errBroken) }) })
	case strayed:
		t.execute(l.later, run)
		if s.messages%2 == 0 {
			t.at(t.now+l.there+l.back, s, func() { end(func() { failed(errBroken) }) })
		}
	default:
		t.execute(l.there, func() {
			run()
			t.at(t.now+l.back, s, comesBack)
		})
	}
}

// execute has Redis run something after a time, or when it can again.
func (t *trial) execute(after time.Duration, run func()) {
	t.at(t.now+after, nil, func() {
		if t.now < t.stalledUntil {
			t.execute(t.stalledUntil-t.now+time.Duration(t.calls%3), run)
			return
		}
		run()
	})
}

// carryPushes sends pushes on their way, in order unless something happens to one.
func (t *trial) carryPushes(pushes []push) {
	for _, m := range pushes {
		s := t.named(m.session)
		if s == nil || s.cut || !s.subscribed || m.text == string(message.PushHeartbeat) {
			continue
		}
		l := t.luckOf(s, "push")
		lost := s.pushesLost
		hear := func() {
			if s.pushesLost == lost {
				t.hear(s, m.text)
			}
		}
		arrival := max(t.now+l.back, s.lastPush)
		switch l.fate {
		case requestLost, answerLost, breaks:
			t.say("a push to %s is lost: %s", s.name, m.text)
			s.troubled(t)
			continue
		case slow, strayed: // those after it do not wait for it
			t.at(t.now+l.back+l.later, s, hear)
			s.troubled(t)
			continue
		case echoed, doubled:
			t.at(arrival+l.later, s, hear)
		}
		s.lastPush = arrival
		t.at(arrival, s, hear)
	}
}

// losePushes loses those that are on their way.
func (t *trial) losePushes(s *session) {
	s.pushesLost++
	s.lastPush = 0
	s.troubled(t)
}

// tickAt is when a session's timer fires.
func (t *trial) tickAt(s *session) (time.Duration, bool) {
	wake := s.core.WakeAt()
	if s.dead || s.paused || wake == 0 || s.core.Left() {
		return 0, false
	}
	late := time.Duration(0)
	if t.plan.lazy && !t.calm {
		late = lateness(s, wake)
	}
	return max(t.now, s.world(wake)+late), true
}

// maxLateness bounds how late a timer is.
const maxLateness = 25 * time.Millisecond

func lateness(s *session, wake time.Duration) time.Duration {
	if n := uint64(wake) / 1000 * 2654435761 % 7; n < 3 {
		return time.Duration(n) * maxLateness / 2
	}
	return 0
}

// pause stops a process, as a debugger does, or a hypervisor.
func (t *trial) pause(s *session) {
	t.say("%s stops", s.name)
	s.paused = true
	s.troubled(t)
}

// resume lets a process go on. What it finds comes in any order.
func (t *trial) resume(s *session) {
	if !s.paused {
		return
	}
	t.say("%s goes on", s.name)
	s.paused, s.resumed = false, t.now
	s.troubled(t)
	r := t.chance(fmt.Sprintf("%s: wakes at %v", short(s.name), t.now))
	r.Shuffle(len(s.held), func(i, j int) { s.held[i], s.held[j] = s.held[j], s.held[i] })
	for _, do := range s.held {
		t.soon(s, do)
	}
	s.held = nil
}

// cutOff has nothing pass between a session and Redis any more.
func (t *trial) cutOff(s *session, noticed bool) {
	t.say("%s is cut off", s.name)
	s.cut = true
	s.troubled(t)
	t.loseSubscription(s)
	if noticed {
		t.soon(s, func() { t.step(s, setConfirmed(false)) })
	}
}

// heal connects a session again.
func (t *trial) heal(s *session) {
	if !s.cut {
		return
	}
	t.say("%s is connected again", s.name)
	s.cut = false
	s.troubled(t)
	t.subscribe(s)
}
