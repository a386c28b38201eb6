package engine

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// subscribe starts listening, and waits for a bounded time until Redis has confirmed or refused. ps
// is a connection that is there for it, or nil.
func (s *Session) subscribe(ctx context.Context, ps *redis.PubSub) {
	// The subscription lives as long as the session; only the wait for it is bounded.
	ps = s.openSubscription(ps)
	answered := make(chan struct{})
	s.mu.Lock()
	s.pubsub = ps
	s.background(func() { s.listen(answered) })
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL)
	defer cancel()
	select {
	case <-answered:
	case <-ctx.Done():
		s.warn("no subscription yet: " +
			"waiters ask again every RetryInterval instead of being pushed to")
	}
}

// connectSubscription opens the connection of the subscription, so that New need not wait for that
// after it has joined. The session subscribes only after it has joined: a newcomer that finds no
// state takes a subscribed session for one that holds permits. In a Cluster the channel decides
// about the connection.
func (s *Session) connectSubscription(ctx context.Context) *redis.PubSub {
	if _, single := s.clients.own.(*redis.Client); !single {
		return nil
	}
	ps := s.clients.listener().Subscribe(s.ctx)
	if ps.Ping(ctx) != nil {
		_ = ps.Close()
		return nil
	}
	return ps
}

// openSubscription subscribes on the connection of ps, or on one of its own if ps is nil. An error
// closes the connection; listen finds that, and go-redis subscribes again.
func (s *Session) openSubscription(ps *redis.PubSub) *redis.PubSub {
	sharded := read(s, (*core.Core).Sharded)
	channel := s.keys.Channel(s.name)
	switch {
	case ps == nil && sharded:
		return s.clients.listener().SSubscribe(s.ctx, channel)
	case ps == nil:
		return s.clients.listener().Subscribe(s.ctx, channel)
	case sharded:
		_ = ps.SSubscribe(s.ctx, channel)
	default:
		_ = ps.Subscribe(s.ctx, channel)
	}
	return ps
}

// reopenSubscription replaces the subscription. Only listen calls it. The core and Close may have
// it closed; each finds it in s.pubsub with s.mu held.
func (s *Session) reopenSubscription() {
	s.mu.Lock()
	old := s.pubsub
	s.mu.Unlock()
	_ = old.Close()
	_ = s.takeUnheard() // that was about the old one
	ps := s.openSubscription(nil)
	s.mu.Lock()
	s.pubsub = ps
	left := s.core.Left()
	s.mu.Unlock()
	if left {
		_ = ps.Close() // Close may have closed the old one
	}
}

func (s *Session) setConfirmed(yes bool) {
	s.step(func(c *core.Core, now time.Duration) { c.SetConfirmed(now, yes) })
}

// listen receives pushes until the session ends, and handles each where it reads it. Another
// goroutine in between, as in go-redis's Channel, would delay a grant as much as its way here does.
// If nothing comes, listen asks the connection for a sign of life, and replaces it if it gives
// none.
func (s *Session) listen(answered chan struct{}) {
	quiet := max(s.cfg.TTL/3, 100*time.Millisecond)
	answer := sync.OnceFunc(func() { close(answered) })
	subscribed, asked := false, false
	for s.ctx.Err() == nil {
		wait := quiet
		if asked {
			wait = max(quiet, 2*s.rtt()) // for a Redis that is slow, not gone
		}
		m, err := s.pubsub.ReceiveTimeout(s.ctx, wait)
		if err == nil {
			asked = false
		}
		var late net.Error
		switch m := m.(type) {
		case *redis.Message:
			if push, ok := message.ParsePush(m.Payload); ok {
				s.stepAndTell(func(c *core.Core, now time.Duration) { c.Pushed(now, push) })
			}
		case *redis.Subscription:
			if strings.HasSuffix(m.Kind, "unsubscribe") {
				// The session did not ask for it: in a Cluster the slot has moved to another node.
				s.setConfirmed(false)
				reloadSlots(s.ctx, s.clients.own)
				s.reopenSubscription()
				continue
			}
			s.setConfirmed(true)
			s.refusals = 0
			if subscribed {
				s.stepAndTell(func(c *core.Core, now time.Duration) { c.Resubscribed(now) })
			}
			subscribed = true
			answer()
		case nil:
			switch {
			case s.takeUnheard():
				asked = false
				reloadSlots(s.ctx, s.clients.own)
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
				s.brokenSubscription(err, answer, min(quiet/4, core.MaxRetryPause))
			}
		}
	}
}

func (s *Session) takeUnheard() (unheard bool) {
	s.step(func(c *core.Core, _ time.Duration) { unheard = c.TakeUnheard() })
	return unheard
}

// brokenSubscription handles an error of the subscription other than silence.
func (s *Session) brokenSubscription(err error, answer func(), pause time.Duration) {
	confirmed := false
	s.step(func(c *core.Core, now time.Duration) {
		confirmed = c.Confirmed()
		c.SetConfirmed(now, false)
	})
	reloadSlots(s.ctx, s.clients.own)
	if s.isRefusal(err, confirmed) {
		answer()
		s.pause(s.afterRefusal(err))
		s.reopenSubscription()
		return
	}
	s.pause(pause) // a broken connection is replaced by go-redis
	var refused redis.Error
	if errors.As(err, &refused) {
		// The connection is well, but has no subscription: the slot has moved on.
		s.reopenSubscription()
	}
}

// isRefusal reports whether err means that Redis, or a proxy, refuses the subscription for good. An
// ACL may forbid it, or the server may not know the command. Or it hangs up on each connection that
// subscribes, while it answers everything else.
func (s *Session) isRefusal(err error, confirmed bool) bool {
	var answer redis.Error
	if errors.As(err, &answer) {
		return !isTemporary(err)
	}
	return isBroken(err) && !confirmed && read(s, (*core.Core).Down) == nil
}

// afterRefusal counts a refusal, and returns how long to pause.
func (s *Session) afterRefusal(err error) time.Duration {
	n := s.refusals
	s.refusals++
	if n == 0 {
		s.warn("Redis refuses the subscription: "+
			"waiters ask again every RetryInterval instead of being pushed to", "error", err)
	}
	return min(core.MaxRetryPause<<min(n, 20), core.MaxRefusedPause)
}
