package redisscript

import (
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The part of the model that is the callers of a session. They ask for permits, wait for them, give
// up and release.

// A request of a caller, of a pool, or of the core itself.
type request struct {
	*core.Request
	trouble int           // of its session, when it was made
	since   time.Duration // when it was made, by its session's clock
	seen    bool          // Redis has executed it
	heard   time.Duration // when an answer to it was last heard
	ofPool  *pool         // that tries, or nil
	trying  bool          // the try has not ended
	caller  bool          // a caller waits for it
}

// A dropping is a release that Redis has not executed yet.
type dropping struct {
	id      string
	trouble int // of its session, when it was made
}

// A released is a release of which the caller is not told yet how it went.
type released struct {
	*core.Drop
	id string
}

// want makes a request of a caller, which gives up after its patience; 0: never.
func (t *trial) want(
	s *session, kind message.Kind, patience time.Duration, permits ...*core.Permit,
) *request {
	return t.submit(s, nil, patience, &core.Request{
		Kind: kind, Permits: permits, Extends: kind == message.Hold,
	})
}

// plain makes permits that no pool holds.
func (s *session) plain(n int) (list []*core.Permit) {
	for range n {
		list = append(list, s.core.NewPermit())
	}
	return list
}

// tryFor makes a request of a pool that does not wait.
func (t *trial) tryFor(s *session, p *pool, r *core.Request) { t.submit(s, p, 0, r) }

func (t *trial) submit(
	s *session, of *pool, patience time.Duration, asks *core.Request,
) *request {
	r := t.noteRequest(s, asks)
	r.caller, r.ofPool, r.trying = true, of, of != nil
	t.step(s, func(c *core.Core, now time.Duration) {
		if !asks.Kind.Waits() {
			patience = c.TryPatience()
		}
		c.Submit(now, asks)
	})
	if patience > 0 {
		t.at(t.now+patience, s, func() {
			if !t.faultless {
				t.giveUp(s, r)
			}
		})
	}
	return r
}

func (t *trial) noteRequest(s *session, r *core.Request) *request {
	q := &request{Request: r, trouble: s.trouble, since: s.local(t.now), heard: t.now}
	s.requests = append(s.requests, q)
	return q
}

// askedAt is when a request was made, or 0 if the core has made it in this step.
func (s *session) askedAt(r *core.Request) time.Duration {
	for _, q := range s.requests {
		if q.Request == r {
			return q.since
		}
	}
	return 0
}

func (s *session) requestOf(id string) *request {
	for _, r := range s.requests {
		for _, p := range r.Permits {
			if p.ID == id {
				return r
			}
		}
	}
	return nil
}

// giveUp has a caller give up. It does nothing if no caller waits any more.
func (t *trial) giveUp(s *session, r *request) {
	if !r.caller {
		return
	}
	r.caller = false
	t.say("%s gives up what it asked for: %s", s.name, ids(r.Permits))
	was := make([]core.State, len(r.Permits))
	for i, p := range r.Permits {
		was[i] = p.State()
	}
	t.step(s, func(c *core.Core, now time.Duration) { _ = c.GiveUp(now, r.Request, 0) })
	t.checkGivenUp(r)
	for i, p := range r.Permits {
		if p.State() == core.Released && was[i] != core.Released {
			t.dropped(s, p.ID)
		}
	}
	t.tryEnds(s, r)
}

func ids(list []*core.Permit) string {
	var out []string
	for _, p := range list {
		out = append(out, p.ID)
	}
	return strings.Join(out, " ")
}

// settled takes the end of a request. Its caller goes on, unless it gives up at this very moment.
func (t *trial) settled(s *session, r *core.Request) {
	_, err := r.Settled()
	t.say("%s: settled, %s: %v", s.name, ids(r.Permits), err)
	t.checkSettled(s, r, err)
	s.over[r] = true
	if err != nil && !r.Extends {
		for _, p := range r.Permits {
			s.ended[p.ID] = t.now
		}
	}
	i := slices.IndexFunc(s.requests, func(q *request) bool { return q.Request == r })
	if i < 0 {
		return // the core has made it in this step
	}
	q := s.requests[i]
	s.requests = slices.Delete(s.requests, i, i+1)
	switch {
	case !q.caller:
	case s.random.IntN(30) == 0 && !t.faultless:
		t.soon(s, func() { t.giveUp(s, q) })
	default:
		q.caller = false
		t.tryEnds(s, q)
		if p := q.ofPool; p != nil && err == nil {
			got := r.Permits[0].Owner.(*permit)
			if got.told = true; p.gone || s.leaves {
				t.soon(s, func() { t.give(s, p, got) })
			}
		}
	}
}

func (t *trial) tryEnds(s *session, r *request) {
	if p := r.ofPool; p != nil && r.trying {
		r.trying = false
		t.step(s, func(c *core.Core, _ time.Duration) { c.TryEnds(&p.core) })
	}
}

// dropped notes that Redis is to be told of a release.
func (t *trial) dropped(s *session, id string) {
	s.dropping = append(s.dropping, &dropping{id, s.trouble})
	s.ended[id] = t.now
}

// release gives back a permit that no pool holds. It is held or lost.
func (t *trial) release(s *session, p *permit) {
	t.say("%s releases %s", s.name, p.ID)
	var d *core.Drop
	t.step(s, func(c *core.Core, now time.Duration) { d = c.Release(now, &p.Permit) })
	if d != nil {
		d.Done = make(chan struct{}) // somebody waits
		s.untold = append(s.untold, released{d, p.ID})
		t.dropped(s, p.ID)
	}
}

// permitOf returns nil for a permit that was released.
func (s *session) permitOf(id string) *permit {
	for _, p := range s.permits {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// owned lists the permits in one of those states, of one pool or of none.
func (s *session) owned(of *core.Pool, states ...core.State) (list []*permit) {
	for _, p := range s.permits {
		if p.Pool == of && slices.Contains(states, p.State()) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *permit) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// forgetReleased forgets the permits that were released.
func (s *session) forgetReleased() {
	s.permits = slices.DeleteFunc(s.permits, func(p *permit) bool {
		return p.State() == core.Released
	})
}
