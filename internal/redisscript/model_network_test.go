package redisscript

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is the network. Messages and pushes are lost, late, doubled and out of
// order.

// A fate says how a message goes.
type fate int

const (
	arrives     fate = iota
	slow             // it takes long, there or back
	requestLost      // Redis never reads it
	answerLost       // its reply is lost
	breaks           // the connection breaks, before or after Redis has read the message
	doubled          // Redis executes it twice, as after a retry of the client's
	strayed          // its sender gives it up, and it arrives all the same, much later
	echoed           // its reply, or the push, arrives twice
)

var fates = [...]string{
	"", ", slow", ", request lost", ", reply lost", ", connection breaks", ", sent twice",
	", strayed", ", heard twice",
}

// The luck of a message says how it goes, and when. It follows from the seed and the message's
// number alone. So if steps of a history are left out, the other messages mostly keep their luck.
type luck struct {
	fate        fate
	there, back time.Duration // how long it takes
	later       time.Duration // strayed: when it arrives; echoed: when it is heard again
	beforeRedis bool          // breaks: before Redis has read it
	usual       bool          // it goes as messages mostly do
}

func (t *trial) chance(key string) *rand.Rand {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))
	return rand.New(rand.NewPCG(t.plan.seed, h.Sum64()))
}

// luckOf draws the luck of the next message of a session, unless a scenario has decided it.
func (t *trial) luckOf(s *session, what string) luck {
	s.messages++
	if t.faultless {
		return luck{usual: true}
	}
	l := luck{there: t.plan.roundTrip / 2, back: t.plan.roundTrip / 2, usual: true}
	if next := s.forced[what]; len(next) > 0 {
		s.forced[what] = next[1:]
		next[0].there += l.there
		next[0].back += l.back
		return next[0]
	}
	key := fmt.Sprintf("%s: %s %d", short(s.name), what, s.messages)
	r := t.chance(key)
	if r.IntN(100) >= t.plan.faults || t.plan.unharmed[key] {
		return l
	}
	t.faults = append(t.faults, key)
	l.usual = false
	ttl := t.plan.ttl
	some := func() time.Duration {
		long := []time.Duration{
			time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond,
			100 * time.Millisecond, ttl / 4, ttl / 2, ttl, ttl * 3 / 2,
		}
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
	case n < 94 && t.plan.strays:
		l.fate, l.later = strayed, ttl/10+time.Duration(r.Int64N(int64(ttl*19/10)))
	default:
		l.fate, l.later = echoed, some()
	}
	return l
}

var (
	errLate   = errors.New("no answer in time")
	errBroken = errors.New("connection is broken")
)

// send carries a message to Redis, where run executes it, and carries its reply back. At last it
// calls answered or failed, unless the process of s ends.
func (t *trial) send(
	s *session, l luck, limit time.Duration, run, answered func(), failed func(error),
) {
	s.travelling++
	if !l.usual {
		s.mishap(t)
	}
	over := false
	end := func(how func()) {
		if over {
			return
		}
		over = true
		s.travelling--
		if !l.usual {
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

// mishap notes that a message of a session is lost or late.
func (s *session) mishap(t *trial) {
	s.troubled(t)
	s.mishaps = append(s.mishaps, t.now)
}

// execute has Redis run a script after a time, or when it can again.
func (t *trial) execute(after time.Duration, run func()) {
	t.at(t.now+after, nil, func() {
		if t.now < t.stalledUntil {
			t.execute(t.stalledUntil-t.now+time.Duration(t.calls%3), run)
			return
		}
		run()
	})
}

// sendPushes carries pushes to their sessions. They arrive in order if all go as usual.
func (t *trial) sendPushes(pushes []push) {
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
			s.mishap(t)
			continue
		case slow, strayed: // those after it do not wait for it
			t.at(t.now+l.back+l.later, s, hear)
			s.mishap(t)
			continue
		case echoed, doubled:
			t.at(arrival+l.later, s, hear)
		}
		s.lastPush = arrival
		t.at(arrival, s, hear)
	}
}

// losePushes loses the pushes that are on their way to a session.
func (t *trial) losePushes(s *session) {
	s.pushesLost++
	s.lastPush = 0
	s.troubled(t)
}

// cutOff has nothing pass between a session and Redis any more.
func (t *trial) cutOff(s *session, noticed bool) {
	t.say("%s is cut off", s.name)
	s.cut = true
	s.disturbed(t)
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
	s.disturbed(t)
	t.subscribe(s)
}
