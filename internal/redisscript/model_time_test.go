package redisscript

import (
	"fmt"
	"slices"
	"time"
)

// The part of the model that is time. Nothing happens but the occurrences that are scheduled, and
// the ticks that cores ask for. The time of the world moves on from one to the next.

// An occurrence is one thing that is going to happen.
type occurrence struct {
	at time.Duration
	of *session // whose process has to run for it, or nil
	do func()
}

// at schedules an occurrence, after all that is scheduled for the same time.
func (t *trial) at(when time.Duration, of *session, do func()) {
	when = max(when, t.now)
	i, _ := slices.BinarySearchFunc(t.scheduled, when, func(o occurrence, when time.Duration) int {
		if o.at <= when {
			return -1
		}
		return 1
	})
	t.scheduled = slices.Insert(t.scheduled, i, occurrence{when, of, do})
}

// soon schedules an occurrence for this moment, once what happens now is over.
func (t *trial) soon(of *session, do func()) { t.at(t.now, of, do) }

// At one moment no more than this happens, and no core asks to be called more often.
const maxOccurrences, maxTicks = 2000, 50

// until has happen what is scheduled up to a time.
func (t *trial) until(end time.Duration) {
	occurrences, ticks := 0, 0
	for {
		next, ticking := end+1, (*session)(nil)
		if len(t.scheduled) > 0 {
			next = t.scheduled[0].at
		}
		for _, s := range t.all() {
			if at, ok := t.tickAt(s); ok && at < next {
				next, ticking = at, s
			}
		}
		if next > t.now {
			occurrences, ticks = 0, 0
			t.checkAllPrompt()
		}
		if next > end {
			t.now = end
			return
		}
		t.now = max(t.now, next)
		if ticking != nil {
			if ticks++; ticks > maxTicks {
				t.failf("prompt: %s asks to be called again and again at one moment", ticking.name)
			}
			t.tick(ticking)
		} else {
			if occurrences++; occurrences > maxOccurrences {
				t.failf("prompt: sessions say the same again and again at one moment")
			}
			o := t.scheduled[0]
			t.scheduled = t.scheduled[1:]
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

// tickAt is when a session's timer fires.
func (t *trial) tickAt(s *session) (time.Duration, bool) {
	wake := s.core.WakeAt()
	if s.dead || s.paused || wake == 0 || s.core.Left() {
		return 0, false
	}
	late := time.Duration(0)
	if t.plan.lateTimers && !t.faultless {
		late = lateness(wake)
	}
	return max(t.now, s.world(wake)+late), true
}

// maxLateness bounds how late a timer fires.
const maxLateness = 25 * time.Millisecond

// lateness is how late a timer for that time fires: mostly not at all.
func lateness(wake time.Duration) time.Duration {
	if n := uint64(wake) / 1000 * 2654435761 % 7; n < 3 {
		return time.Duration(n) * maxLateness / 2
	}
	return 0
}

// pause stops a process, as a debugger or a hypervisor does.
func (t *trial) pause(s *session) {
	t.say("%s stops", s.name)
	s.paused = true
	s.disturbed(t)
}

// resume lets a process go on. It finds what happened meanwhile in any order.
func (t *trial) resume(s *session) {
	if !s.paused {
		return
	}
	t.say("%s goes on", s.name)
	s.paused, s.resumed = false, t.now
	s.disturbed(t)
	r := t.chance(fmt.Sprintf("%s: wakes at %v", short(s.name), t.now))
	r.Shuffle(len(s.held), func(i, j int) { s.held[i], s.held[j] = s.held[j], s.held[i] })
	for _, do := range s.held {
		t.soon(s, do)
	}
	s.held = nil
}

// stall has Redis execute nothing for a while.
func (t *trial) stall(d time.Duration) {
	t.stalledUntil = t.now + d
	t.say("Redis stalls until %v", t.stalledUntil)
	for _, s := range t.all() {
		s.disturbed(t)
		t.at(t.stalledUntil+time.Microsecond, nil, func() { s.disturbed(t) })
	}
}
