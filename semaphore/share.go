package semaphore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A Sharer is a connection pool as the engine sees it: it holds permits through a Share, and is told
// what the fleet wants of it. No method may block. They are called from several goroutines.
type Sharer interface {
	Granted(permits []*Permit)         // permits asked for have arrived
	Recall(n int, after time.Duration) // give n back, at the first occasion after that time
	Keep(n int)                        // n recalls are withdrawn, as far as they are not carried out yet
	Promised(n int)                    // of the units offered, n are needed: give them back
	Wanted(yes bool)                   // whether anyone in the fleet waits
	Lost(p *Permit)                    // its lease can no longer be proven
	Changed()                          // Redis went away, or came back: see Share.Err
	Closed()                           // the semaphore is being closed: give everything back
	Owed() int                         // how many permits were recalled or promised, and are not given back yet
}

// A Share is one connection pool's part of the semaphore. The fleet's capacity is divided between shares by max-min fairness: one that
// waits is served before one that holds more, and the largest gives back to one that has at least two fewer.
//
// It has a number in its session, and with that a name in Redis, only while it needs them:
//
//	     Ask, Try, Stay               a heartbeat has said that it holds nothing, asks for nothing,
//	away ----------------> seated ----------------------------------------------------------------> away
//	                                  and none that said otherwise is on its way any more
//
// So nothing stays of a pool that its owner has closed, or forgotten, without a word to us: pgx tells
// nobody of Pool.Close. A share that comes back may have another number.
//
// It is the base on which the integrations of this module are built. Programs that only want permits use [Semaphore.Acquire].
type Share struct {
	s      *Semaphore
	sharer Sharer

	telling sync.Mutex // held while a tally is heard and carried out; taken before s.mu, and before the sharer's lock

	// Guarded by s.mu.
	seated   bool
	number   int    // while it is seated
	name     string // the same
	stays    bool   // see Stay
	stands   bool   // askAgain will run: no number was free
	trying   int    // calls of Try under way
	want     int
	ask      *ask // the one request under way, or nil
	held     int
	everHeld bool              // it was granted something, once
	heard    redisscript.Tally // of recalls
	moving   bool              // granted something from the queue, and has not said since that it is connected: see Moved
	quitting bool              // a withdrawal is being considered
	known    bool              // Redis may know it
	said     uint64            // the last call of the heartbeat that spoke of it as open, or holding
	closed   bool
}

// A vacancy is the number of a share that is away. The next one to have it begins with the tally that was heard last: Redis
// goes on counting. No UUID of a permit comes again, for what follows the number in it does not.
type vacancy struct {
	number int
	heard  redisscript.Tally
}

// withdrawAfter is how long a request outlives its last local waiter. Waiters come and go with every
// query of a busy pool; asking and withdrawing each time would send two commands for each.
const withdrawAfter = 25 * time.Millisecond

// NewShare adds a connection pool to the session.
func (s *Semaphore) NewShare(sharer Sharer) (*Share, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A program can close pools faster than heartbeats come, which take them out. Two may be needed: one
	// that crossed a close still counts its pool.
	for range 2 {
		if s.closed || s.sharers < maxSharers || len(s.vacant) > 0 {
			break
		}
		s.mu.Unlock()
		_ = s.beat(s.ctx)
		s.mu.Lock()
	}
	if s.closed {
		return nil, fmt.Errorf("%w", ErrClosed)
	}
	sh := &Share{s: s, sharer: sharer}
	if !s.seat(sh) {
		return nil, errManyShares
	}
	return sh, nil
}

var errManyShares = fmt.Errorf("semaphore: a session can have %d connection pools that hold or want something at a time, "+
	"and those that did so since the last heartbeat count", maxSharers)

// seat sees to it that sh has a number, if there is one. s.mu is held.
func (s *Semaphore) seat(sh *Share) bool {
	if sh.seated {
		return true
	}
	if n := len(s.vacant); n > 0 {
		sh.number, sh.heard = s.vacant[n-1].number, s.vacant[n-1].heard
		s.vacant = s.vacant[:n-1]
	} else if s.sharers < maxSharers {
		s.sharers++
		sh.number, sh.heard = s.sharers, redisscript.Tally{}
	} else {
		return false
	}
	sh.name = s.identity.sharer(sh.number)
	sh.seated, sh.said = true, 0
	s.shares = append(s.shares, sh)
	return true
}

// busy reports whether sh holds or asks for anything, or has said that it stays. s.mu is held.
func (sh *Share) busy() bool { return sh.held > 0 || sh.ask != nil || sh.trying > 0 || sh.stays }

// Ask says how many permits more the pool could use now; it is a level, not an increment. One request is under way at a time,
// for as many as are free, or for one.
func (sh *Share) Ask(n int) {
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	sh.setWant(n)
}

// Stay keeps the share in its session, or no longer, though it holds and asks for nothing: the pool has connections that
// live without a permit, and must hear when Redis is back, or the session is closed.
func (sh *Share) Stay(yes bool) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.stays = yes
	switch {
	case !yes || sh.seated:
	case s.closed:
		go sh.sharer.Closed() // it was away when the others were told
	default:
		s.seat(sh)
	}
}

// setWant is Ask. s.mu is held.
func (sh *Share) setWant(n int) {
	s := sh.s
	sh.want = n
	switch {
	case s.closed && n > 0 && !sh.seated:
		go sh.sharer.Closed() // it was away when the others were told
	case s.closed:
	case n > 0 && !s.seat(sh):
		if !sh.stands {
			sh.stands = true
			s.beatSoon() // others may be about to leave
			time.AfterFunc(retryMost, sh.askAgain)
		}
	case n > 0 && sh.ask == nil:
		sh.known = true
		permits := make([]*Permit, min(n, shareMost, max(1, s.roomBelowMax())))
		for i := range permits {
			permits[i] = s.newPermit(sh)
		}
		sh.ask = s.newAsk(redisscript.Share, sh, permits...)
		s.submit(sh.ask)
		s.fly()
	case n == 0 && sh.ask != nil && !sh.quitting:
		sh.quitting = true
		time.AfterFunc(withdrawAfter, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			sh.quitting = false
			if sh.want == 0 && sh.ask != nil {
				s.withdraw(sh.ask, ErrCapacity)
			}
		})
	}
}

// askAgain is for a share that found no number.
func (sh *Share) askAgain() {
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	sh.stands = false
	sh.setWant(sh.want)
}

// Give releases a permit of this share, held or lost, in the background.
func (sh *Share) Give(p *Permit) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state == free || s.left {
		return
	}
	s.release(p)
	if sh.ask != nil && !sh.ask.behind {
		s.putOut(sh.ask) // its rank in the queue was that of a larger share
	}
	s.fly()
	if s.closed {
		s.returned.Signal()
	}
}

// Offer asks whether anyone in the fleet needs some of n units that lie idle. The answer is Sharer.Promised, or nothing.
func (sh *Share) Offer(n int) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.offers {
		if s.offers[i].share == sh {
			s.offers[i].n = n
			return
		}
	}
	if !s.closed && sh.seated {
		s.offers = append(s.offers, offer{sh, n})
		s.fly()
	}
}

// Moved tells what it has just cost to move a permit here: to close a connection up to its server's end, to be granted the permit, and to
// connect. The fleet paces the moves of permits by it, and the next turn of rotation may wait for the end of this one: that is said at once, and
// all else with the next exchange or heartbeat.
func (sh *Share) Moved(cost time.Duration) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moveCost = max(cost, time.Microsecond)
	if sh.moving {
		sh.moving = false
		s.confirms = true
		s.fly()
	}
}

// takeMoveCost is what a move was measured to cost since it was last taken, in microseconds, or 0. s.mu is held.
func (s *Semaphore) takeMoveCost() int64 {
	cost := s.moveCost.Microseconds()
	s.moveCost, s.confirms = 0, false
	return cost
}

// returnMoveCost undoes takeMoveCost, as Redis did not answer: rotation would wait for a move that has ended. It is said again with what
// else is said next, or by repeat; not at once, for Redis may be away. s.mu is held.
func (s *Semaphore) returnMoveCost(micros int64) {
	if s.moveCost == 0 {
		s.moveCost = time.Duration(micros) * time.Microsecond
	}
}

// hear takes a tally of recalls, and returns how many are new; below zero, how many were withdrawn. Tallies come by pushes, by the answers to
// offers and by heartbeats, in any order and more than once. One of a state that is lost, or not known yet, says nothing: it is looked at under
// the lock under which a heartbeat begins to count anew. telling is held.
func (sh *Share) hear(name, epoch string, told redisscript.Tally) int {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if epoch != s.epoch || name != sh.name { // it has another number by now
		return 0
	}
	before := sh.heard
	sh.heard = redisscript.Tally{Recalled: max(before.Recalled, told.Recalled), Withdrawn: max(before.Withdrawn, told.Withdrawn)}
	return int(sh.heard.Recalled - before.Recalled - (sh.heard.Withdrawn - before.Withdrawn))
}

// told carries out a tally of recalls; what is new is due after that time, or answers an offer. To hear it and to carry it out is one step:
// if a later tally could come between, its withdrawals would find nothing to withdraw. s.mu is not held.
func (sh *Share) told(name, epoch string, t redisscript.Tally, after time.Duration, offered bool) {
	sh.telling.Lock()
	defer sh.telling.Unlock()
	switch n := sh.hear(name, epoch, t); {
	case n > 0 && offered:
		sh.sharer.Promised(n)
	case n > 0:
		sh.sharer.Recall(n, after)
	case n < 0:
		sh.sharer.Keep(-n)
	}
}

// owes is what a heartbeat says of recalls: the tally heard last, and what of it is still to be given.
func (sh *Share) owes() (heard redisscript.Tally, owed int) {
	sh.telling.Lock()
	defer sh.telling.Unlock()
	owed = sh.sharer.Owed()
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	return sh.heard, owed
}

// forgetOwed begins to count anew, from t: what was owed is forgotten, there as here.
func (sh *Share) forgetOwed(name string, t redisscript.Tally) {
	sh.telling.Lock()
	defer sh.telling.Unlock()
	sh.s.mu.Lock()
	same := name == sh.name
	if same {
		sh.heard = t
	}
	sh.s.mu.Unlock()
	if same {
		sh.sharer.Keep(sh.sharer.Owed())
	}
}

// Full reports whether the pool waits for a permit, and Redis has answered that none is free.
func (sh *Share) Full() bool {
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	return sh.ask != nil && sh.ask.answered && sh.ask.full
}

// Err is why Redis cannot be asked now, matching ErrUnavailable, or nil.
func (sh *Share) Err() error {
	sh.s.mu.Lock()
	defer sh.s.mu.Unlock()
	if err := cmp.Or(sh.s.down, sh.s.noMemory); err != nil {
		return unavailable(err)
	}
	return nil
}

// Try acquires one permit for the pool without waiting, as TryAcquire does. It does not pass through Granted.
func (sh *Share) Try(ctx context.Context) (*Permit, error) {
	sh.s.mu.Lock()
	if !sh.s.seat(sh) {
		sh.s.mu.Unlock()
		return nil, errManyShares
	}
	sh.known = true
	sh.trying++
	p := sh.s.newPermit(sh)
	sh.s.mu.Unlock()
	defer func() {
		sh.s.mu.Lock()
		sh.trying--
		sh.s.mu.Unlock()
	}()
	if err := sh.s.wait(ctx, sh.s.newAsk(redisscript.Try, nil, p)); err != nil {
		return nil, err
	}
	return p, nil
}

// Close takes the share out of the session, once its last permit is given back.
func (sh *Share) Close() {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh.ask != nil {
		s.withdraw(sh.ask, ErrCapacity)
	}
	// The next heartbeat that finds nothing held takes it out, here and from what Redis counts of it. Of one that never asked Redis knows nothing.
	if !sh.closed && !sh.known {
		s.removeShare(sh)
	}
	sh.closed = true
}

// removeShare takes sh out of the session. s.mu is held.
func (s *Semaphore) removeShare(sh *Share) {
	before := len(s.shares)
	s.shares = slices.DeleteFunc(slices.Clone(s.shares), func(other *Share) bool { return other == sh })
	if len(s.shares) < before {
		s.vacant = append(s.vacant, vacancy{sh.number, sh.heard})
		s.offers = slices.DeleteFunc(s.offers, func(o offer) bool { return o.share == sh })
		sh.seated, sh.known, sh.name = false, false, ""
	}
}

// deliver hands grants to their pools. s.mu is not held.
func (s *Semaphore) deliver(shared map[*Share][]*Permit) {
	for sh, permits := range shared {
		sh.sharer.Granted(permits)
		s.mu.Lock()
		for _, p := range permits {
			p.delivering = false
			if p.state == lost {
				go sh.sharer.Lost(p)
			}
		}
		s.mu.Unlock()
	}
}

// tellWanted passes on what an answer to what was sent then says of the queue. An answer that nobody waits is not news if a
// push said otherwise since. s.mu is not held.
func (s *Semaphore) tellWanted(sh Sharer, wanted bool, sent time.Duration) {
	s.mu.Lock()
	stale := !wanted && s.toldAt >= sent
	s.mu.Unlock()
	if !stale {
		sh.Wanted(wanted)
	}
}

// tellShares calls tell for every pool. s.mu is not held.
func (s *Semaphore) tellShares(tell func(Sharer)) {
	s.mu.Lock()
	shares := s.shares
	s.mu.Unlock()
	for _, sh := range shares {
		tell(sh.sharer)
	}
}

func (s *Semaphore) shareNamed(name string) *Share {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sh := range s.shares {
		if sh.name == name {
			return sh
		}
	}
	return nil
}
