package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// This file is about connections that stay out of their pools: for ever, such as one that listens,
// or because their callers wait for others. Each heartbeat looks at the figures of the pools, and
// logs what an operator should know. While callers wait, it also reads what the other sessions say,
// for the error of a caller that is refused.

const (
	// outAfter is how long callers wait, while nothing that their process has in use comes back,
	// before the session says so. It is a third of the default AcquireTimeout: callers are not
	// refused yet.
	outAfter = 10 * time.Second
	// outAgain is how long it is silent after that, whatever comes back.
	outAgain = time.Minute

	// readAfter is how long a caller has waited before the other sessions' figures are read. At the
	// cap shorter waits are ordinary.
	readAfter = time.Second
	// readEvery, and readMore for each session, bound how often that is done. If the callers of all
	// processes wait, the fleet reads ten times a second at most, a page each time.
	readEvery = 2 * time.Second
	readMore  = 100 * time.Millisecond
	// readKept is how old figures may be.
	readKept = 2 * time.Minute
)

// holders holds the session's knowledge of connections that stay out. Session.mu guards it.
type holders struct {
	fleet  message.Holders
	some   bool // fleet is of some sessions only
	readAt time.Duration
	next   time.Duration // no earlier than that it is read again

	here   message.Out // at the last heartbeat
	said   bool        // the line about here is logged, and nothing came back since
	silent time.Duration
}

// warnHeld logs, once for each pool, that connections stay out of it. It does not where the session
// has as many permits to itself. If callers wait here, a hijacked connection is worth the line at
// once, and otherwise when it is in use for long.
func (s *Session) warnHeld(p *Pool, f message.PoolFigures) {
	held := max(f.Hijacked, f.LongUse)
	if p.warned || held <= s.cfg.Min || f.LongUse == 0 && f.OldestWait < readAfter {
		return
	}
	p.warned = true
	s.warn("connections stay out of their pool: no recall takes back the permits that they hold",
		"pool", f.Name, "hijacked", f.Hijacked, "over_a_minute", f.LongUse,
		"oldest", f.OldestUse.Round(time.Second), "see", message.HeldDocument)
}

// look takes in the figures of this session's pools.
func (s *Session) look(list []message.PoolFigures) {
	out := message.NewOut(list, readAfter)
	s.mu.Lock()
	h, now := &s.holders, s.now()
	h.here = out
	full := s.core.Err() == nil && s.core.AtCapacity(now) == core.ErrCapacity && !s.core.Left()
	if full && out.Waited > 0 && now >= h.next {
		h.next = now + readEvery
		s.background(s.readHolders)
	}
	stuck := full && min(out.Waited, out.Newest) >= outAfter
	h.said = h.said && stuck
	say := stuck && !h.said && now >= h.silent
	if say {
		h.said, h.silent = true, now+outAgain
	}
	s.mu.Unlock()
	if say {
		s.warn("callers wait, and none of the connections that this process has in use comes back: "+
			message.OutCause, "waiting", out.Waiting, "holding", out.InUse,
			"see", message.HeldDocument)
	}
}

// readHolders reads what the sessions of the fleet say of connections that stay out. It is for an
// error text only, so an error changes nothing.
func (s *Session) readHolders() {
	ctx, cancel := context.WithTimeout(s.ctx, max(s.cfg.TTL, startTimeout))
	defer cancel()
	infos, all, err := redisscript.Infos(ctx, s.clients.operator, s.keys)
	if err != nil {
		return
	}
	var fleet message.Holders
	for _, text := range infos {
		for _, p := range message.ParseInfo(text).Pools {
			fleet.Add(p)
		}
	}
	s.mu.Lock()
	h := &s.holders
	h.fleet, h.some, h.readAt = fleet, !all, s.now()
	h.next = max(h.next, h.readAt+time.Duration(len(infos))*readMore)
	s.mu.Unlock()
}

// Holders says what is known of connections that stay out. fleet is about those of all sessions.
// here is about all that this session has in use, where its callers wait and nothing comes back.
// Each is "" if there is nothing to say.
func (s *Session) Holders() (fleet, here string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.holders
	if h.readAt > 0 && s.now()-h.readAt < readKept {
		fleet = h.fleet.Of(s.core.KnownCapacity())
		if h.some && fleet != "" {
			fleet = "at least " + fleet
		}
	}
	if h.here.Newest >= readAfter {
		here = fmt.Sprintf("nothing that this process has in use came back for %v (%s)",
			h.here.Newest.Round(time.Second), h.here.InUse)
	}
	return fleet, here
}
