package semaphore

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// Pushes are hints that save time. What they say is in Redis too, and is found by looking again.
//
//	g <epoch> <Redis's time, ms> <UUID>...   granted
//	w <sharer>                       somebody waits: offer what lies idle
//	b <epoch> <sharer> <n> <m> <ms>  it was ever asked to give n permits back, and m of that was withdrawn; what is new is due in ms
//	r                                look again
//	l                                state was lost: re-assert what is held
//	h                                to oneself, in each heartbeat: see heard
//	f [<UUID> <pid> <start>]...      end these backends, whose permits are in quarantine
//	s <epoch> [<UUID> <pid> <start> <server> <n>]...
//	                                 see whether these backends, which are recorded so, are gone

// anchor ties Redis's clock to ours: what Redis did at redis, in ms, happened locally at or after local.
type anchor struct {
	local time.Duration
	redis int64
}

// bound is the earliest local time at which Redis's clock can have shown t. It is never later than now.
func (a anchor) bound(t int64, now time.Duration) time.Duration {
	return min(now, a.local+time.Duration(t-a.redis-1)*time.Millisecond)
}

// expected is what Redis's clock should show at the local time at, in ms, or 0 if it was never heard of.
func (a anchor) expected(at time.Duration) int64 {
	if a.redis == 0 {
		return 0
	}
	return a.redis + (at - a.local).Milliseconds()
}

// subscribe starts listening, and waits for a bounded time until Redis has confirmed or refused.
func (s *Semaphore) subscribe(ctx context.Context) {
	// The subscription lives as long as the session; only the wait for it is bounded.
	ps := s.openSubscriptionOn(s.pubsub)
	s.mu.Lock()
	s.pubsub = ps
	s.mu.Unlock()
	answered := make(chan struct{})
	s.wg.Add(1)
	go s.listen(answered)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL)
	defer cancel()
	select {
	case <-answered:
	case <-ctx.Done():
		s.log.Warn("no subscription yet: waiters look again every RetryInterval instead of being pushed to", "semaphore", s.base)
	}
}

// connectSubscription opens the connection of the subscription, so that New need not wait for that after it
// has joined. Only then does it subscribe: who is subscribed holds permits, to a newcomer that finds no
// state. In a Cluster the channel decides about the connection.
func (s *Semaphore) connectSubscription(ctx context.Context) *redis.PubSub {
	if _, single := s.own.(*redis.Client); !single {
		return nil
	}
	ps := s.listener().Subscribe(s.ctx)
	if ps.Ping(ctx) != nil {
		_ = ps.Close()
		return nil
	}
	return ps
}

// openSubscriptionOn is openSubscription on a connection that is there, unless ps is nil.
func (s *Semaphore) openSubscriptionOn(ps *redis.PubSub) *redis.PubSub {
	if ps == nil {
		return s.openSubscription()
	}
	s.mu.Lock()
	sharded := s.sharded
	s.mu.Unlock()
	// An error closes the connection; listen finds that, and go-redis subscribes again.
	if sharded {
		_ = ps.SSubscribe(s.ctx, s.keys.Channel(s.identity.session))
	} else {
		_ = ps.Subscribe(s.ctx, s.keys.Channel(s.identity.session))
	}
	return ps
}

func (s *Semaphore) openSubscription() *redis.PubSub {
	s.mu.Lock()
	sharded := s.sharded
	s.mu.Unlock()
	if sharded {
		return s.listener().SSubscribe(s.ctx, s.keys.Channel(s.identity.session))
	}
	return s.listener().Subscribe(s.ctx, s.keys.Channel(s.identity.session))
}

// listener is the client of subscriptions.
func (s *Semaphore) listener() redis.UniversalClient {
	if c, single := s.own.(*redis.Client); single && s.listenTimeout > 0 {
		return c.WithTimeout(s.listenTimeout)
	}
	return s.own
}

// A subscription is
//
//	opened --> confirmed --> broken, or unheard: replaced
//	   |
//	   +-----> refused: replaced, after a pause that doubles
//
// It is broken if its connection ends, if it gives no sign of life, or if the server unsubscribes
// it. It is unheard if another server answers the heartbeats: its address leads there by now, and
// the old server lives on as a replica. The replica may even pass on what is published. But a
// newcomer that looks for subscribed sessions after a loss of state does not see this one, and is
// granted what it holds.

// refusedMost is the longest pause before the session replaces a subscription that was refused, or
// that is unheard again and again.
const refusedMost = time.Minute

// A listening is the state of the subscription. Semaphore.mu guards it, but for refusals.
type listening struct {
	confirmed   bool
	since       time.Duration // when it was confirmed; see Semaphore.sinceStart
	unheard     bool          // heard has closed it, for listen to replace it
	unheardNext time.Duration // before that time, heard does not close it again
	unheardWait time.Duration // how long it waited last

	refusals int // in a row; only listen uses it
}

// heard takes from a heartbeat's answer how many subscriptions have got a push to this session, at
// the server that answered; below zero means unknown. sent is when the heartbeat was sent. s.mu is
// held.
//
// A server counts a subscription that it confirmed before the heartbeat was sent. If it counts
// none, it has lost the subscription, which listen is about to notice, or another server has
// confirmed it. To replace it is right in both cases. If scripts and subscriptions always reach
// different servers, as behind some proxies, the new one stays unheard too. So the pauses double.
func (s *Semaphore) heard(by int64, sent time.Duration) {
	l := &s.listening
	switch {
	case by > 0:
		l.unheardWait = 0
		return
	case by < 0 || !l.confirmed || l.since >= sent || sent < l.unheardNext || s.left:
		return
	}
	l.unheardWait = min(max(2*l.unheardWait, s.cfg.TTL/4), refusedMost)
	l.unheardNext = s.sinceStart() + l.unheardWait
	l.unheard, l.confirmed = true, false
	go s.pubsub.Close() // wakes listen; Close may wait for a dial that is under way
}

// takeUnheard reports whether heard has closed the subscription.
func (s *Semaphore) takeUnheard() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	unheard := s.listening.unheard
	s.listening.unheard = false
	return unheard
}

func (s *Semaphore) setConfirmed(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listening.confirmed, s.listening.since = yes, s.sinceStart()
}

// listen receives pushes until the session ends, and handles each where it is read: another goroutine between, as in go-redis's Channel, would
// cost a grant as much as the way here. A connection on which nothing comes is asked for a sign of life, and replaced if it gives none.
func (s *Semaphore) listen(answered chan struct{}) {
	defer s.wg.Done()
	quiet := max(s.cfg.TTL/3, 100*time.Millisecond)
	answer := sync.OnceFunc(func() { close(answered) })
	subscribed, asked := false, false
	for s.ctx.Err() == nil {
		wait := quiet
		if asked {
			wait = max(quiet, s.slowest()) // for a Redis that is slow, not gone
		}
		m, err := s.pubsub.ReceiveTimeout(s.ctx, wait)
		if err == nil {
			asked = false
		}
		var late net.Error
		switch m := m.(type) {
		case *redis.Message:
			s.pushed(m.Payload)
		case *redis.Subscription:
			if strings.HasSuffix(m.Kind, "unsubscribe") {
				// Nobody asked for it: in a Cluster the slot has moved to another node.
				s.setConfirmed(false)
				lookAround(s.ctx, s.own)
				s.reopenSubscription()
				continue
			}
			s.setConfirmed(true)
			s.listening.refusals = 0
			if !subscribed {
				subscribed = true
				answer()
				continue
			}
			// Subscribed again after a reconnect: what was pushed in between is lost. The heartbeat learns of recalls.
			s.mu.Lock()
			s.repeat()
			s.mu.Unlock()
			s.beatSoon()
		case nil:
			switch {
			case s.takeUnheard():
				asked = false
				lookAround(s.ctx, s.own)
				s.reopenSubscription()
			case errors.Is(err, redis.ErrClosed):
				return
			case errors.As(err, &late) && late.Timeout() && !asked:
				asked = s.pubsub.Ping(s.ctx) == nil
			case errors.As(err, &late) && late.Timeout():
				asked = false
				s.setConfirmed(false)
				s.reopenSubscription()
			default:
				confirmed := s.isConfirmed()
				s.setConfirmed(false)
				lookAround(s.ctx, s.own)
				if s.refuses(err, confirmed) {
					answer()
					s.pause(s.afterRefusal(err))
					s.reopenSubscription()
					continue
				}
				s.pause(min(quiet/4, retryMost)) // a broken connection is replaced by go-redis
				var refused redis.Error
				if errors.As(err, &refused) {
					// The connection is well, but has no subscription: the slot has moved on.
					s.reopenSubscription()
				}
			}
		}
	}
}

func (s *Semaphore) isConfirmed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listening.confirmed
}

// refuses reports whether err means that Redis, or a proxy, refuses the subscription for good. It
// may do so by an ACL, or because it knows no such command. Or it hangs up on each connection that
// asks, while it answers everything else.
func (s *Semaphore) refuses(err error, confirmed bool) bool {
	var answer redis.Error
	if errors.As(err, &answer) {
		return !isPassing(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return (isBroken(err) || errors.Is(err, io.ErrClosedPipe)) && !confirmed && s.down == nil
}

// afterRefusal counts a refusal, and returns how long to pause.
func (s *Semaphore) afterRefusal(err error) time.Duration {
	n := s.listening.refusals
	s.listening.refusals++
	if n == 0 {
		s.log.Warn("Redis refuses the subscription: "+
			"waiters look again every RetryInterval instead of being pushed to",
			"semaphore", s.base, "error", err)
	}
	return min(retryMost<<min(n, 20), refusedMost)
}

// reopenSubscription replaces the subscription. Only listen calls it. heard and close may close the
// subscription; each finds it in s.pubsub with s.mu held.
func (s *Semaphore) reopenSubscription() {
	_ = s.pubsub.Close() // it is of no use any more
	ps := s.openSubscription()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pubsub, s.listening.unheard = ps, false
	if s.left { // and close has closed the old one
		go ps.Close()
	}
}

// beatSoon sends a heartbeat now, off its caller's path. Its caller knows that the session has not ended: it is listen, a flight, or holds
// s.mu and has seen that s.left is not set.
func (s *Semaphore) beatSoon() {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		var err error
		for range 3 {
			if err = s.beat(s.ctx); err == nil || s.ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return
			}
			s.pause(min(s.cfg.TTL/12, retryMost))
		}
		s.log.Warn("heartbeat failed", "semaphore", s.base, "error", err)
	}()
}

// pause waits for d, or for the end of the session.
func (s *Semaphore) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

func (s *Semaphore) pushed(payload string) {
	fields := strings.Fields(payload)
	if len(fields) == 0 {
		return
	}
	switch kind, rest := fields[0], fields[1:]; {
	case kind == "g" && len(rest) > 2:
		at, err := strconv.ParseInt(rest[1], 10, 64)
		if err != nil {
			return
		}
		s.mu.Lock()
		var shared map[*Share][]*Permit
		for _, id := range rest[2:] {
			if a := s.asks[id]; a != nil {
				a.waited = true // though the answer that says so may still be on its way
			}
		}
		if rest[0] == s.epoch && s.cfg.WaitReplicas == 0 {
			shared = s.granted(rest[2:], s.anchor.bound(at, s.sinceStart()))
		} else {
			s.repeat() // the state that granted it is lost, or we have not heard of the new one yet; or see replicated
		}
		s.mu.Unlock()
		s.deliver(shared)
	case kind == "w" && len(rest) == 1:
		if sh := s.shareNamed(rest[0]); sh != nil {
			s.mu.Lock()
			s.toldAt = s.sinceStart()
			s.mu.Unlock()
			sh.sharer.Wanted(true)
		}
	case kind == "b" && len(rest) == 5:
		recalled, err1 := strconv.ParseInt(rest[2], 10, 64)
		withdrawn, err2 := strconv.ParseInt(rest[3], 10, 64)
		after, err3 := strconv.ParseInt(rest[4], 10, 32)
		if sh := s.shareNamed(rest[1]); sh != nil && err1 == nil && err2 == nil && err3 == nil {
			sh.told(rest[1], rest[0], redisscript.Tally{Recalled: recalled, Withdrawn: withdrawn}, time.Duration(max(after, 0))*time.Millisecond, false)
		}
	case kind == "f":
		var quarantine []string
		for ; len(rest) > 2; rest = rest[3:] {
			quarantine = append(quarantine, rest[0], rest[1]+" "+rest[2])
		}
		s.endBackends(quarantine)
	case kind == "s" && len(rest) > 5:
		s.look(rest[0], rest[1:])
	case kind == "l":
		s.beatSoon()
	case kind == "r":
		s.mu.Lock()
		s.repeat()
		s.mu.Unlock()
	}
}
