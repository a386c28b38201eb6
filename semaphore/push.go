package semaphore

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
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
//	f [<UUID> <pid> <start>]...      end these backends, whose permits are in quarantine

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

// subscribe starts listening and waits, for a bounded time, until Redis has confirmed it.
func (s *Semaphore) subscribe(ctx context.Context) {
	// The subscription lives as long as the session; only the wait for it is bounded.
	s.pubsub = s.openSubscriptionOn(s.pubsub)
	confirmed := make(chan struct{})
	s.wg.Add(1)
	go s.listen(confirmed)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL)
	defer cancel()
	select {
	case <-confirmed:
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

// listen receives pushes until the session ends, and handles each where it is read: another goroutine between, as in go-redis's Channel, would
// cost a grant as much as the way here. A connection on which nothing comes is asked for a sign of life, and replaced if it gives none.
func (s *Semaphore) listen(confirmed chan struct{}) {
	defer s.wg.Done()
	quiet := max(s.cfg.TTL/3, 100*time.Millisecond)
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
				lookAround(s.ctx, s.own)
				s.reopenSubscription()
				continue
			}
			if !subscribed {
				subscribed = true
				close(confirmed)
				continue
			}
			// Subscribed again after a reconnect: what was pushed in between is lost. The heartbeat learns of recalls.
			s.mu.Lock()
			s.repeat()
			s.mu.Unlock()
			s.beatSoon()
		case nil:
			switch {
			case errors.Is(err, redis.ErrClosed):
				return
			case errors.As(err, &late) && late.Timeout() && !asked:
				asked = s.pubsub.Ping(s.ctx) == nil
			case errors.As(err, &late) && late.Timeout():
				asked = false
				s.reopenSubscription()
			default:
				lookAround(s.ctx, s.own)
				s.pause(min(quiet/4, retryMost)) // a broken connection is replaced by go-redis
				var answer redis.Error
				if errors.As(err, &answer) {
					// The connection is well, but there is no subscription on it: the slot has moved on, or may not be listened to.
					s.reopenSubscription()
				}
			}
		}
	}
}

// reopenSubscription replaces the subscription. Only listen calls it, and only it and close have to do with s.pubsub.
func (s *Semaphore) reopenSubscription() {
	_ = s.pubsub.Close() // it is of no use any more
	ps := s.openSubscription()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pubsub = ps
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
			sh.told(rest[0], redisscript.Tally{Recalled: recalled, Withdrawn: withdrawn}, time.Duration(max(after, 0))*time.Millisecond, false)
		}
	case kind == "f":
		var quarantine []string
		for ; len(rest) > 2; rest = rest[3:] {
			quarantine = append(quarantine, rest[0], rest[1]+" "+rest[2])
		}
		s.endBackends(quarantine)
	case kind == "l":
		s.beatSoon()
	case kind == "r":
		s.mu.Lock()
		s.repeat()
		s.mu.Unlock()
	}
}
