package engine

import (
	"context"
	"errors"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// call sends a call of the heartbeat and takes its reply, unless so many calls are on their way
// that the last of those has to do.
func (s *Session) call() {
	if k := s.nextCall(); k != nil {
		s.finish(k, 2*s.cfg.TTL)
	}
}

// nextCall makes a call. It asks the pools what they owe while none is told anything, so that this
// matches what the core says that they have heard.
func (s *Session) nextCall() (k *core.Call) {
	s.telling.Lock()
	defer s.telling.Unlock()
	owed, pools := make(map[*core.Pool]int), read(s, (*core.Core).Pools)
	for _, p := range pools {
		if n := p.Owner.(*Pool).listener.Owed(); n > 0 {
			owed[p] = n
		}
	}
	info := s.info(pools)
	s.step(func(c *core.Core, now time.Duration) {
		c.SetInfo(info)
		k = c.NextCall(now, owed)
	})
	return k
}

// finish sends k and takes its reply, for which it waits for limit at most.
func (s *Session) finish(k *core.Call, limit time.Duration) {
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	var got message.Renewed
	var err error
	for range 3 { // a connection that broke while it lay idle says nothing of the next
		got, err = redisscript.Renew(ctx, s.scripter(s.clients.own), s.keys, k.X)
		if !isBroken(err) || ctx.Err() != nil {
			break
		}
		s.step(func(c *core.Core, now time.Duration) { c.CallBroke(now) })
	}
	if err != nil {
		reloadSlots(s.ctx, s.clients.own)
	}
	s.stepAndTell(func(c *core.Core, now time.Duration) {
		if err != nil {
			c.CallFailed(now, k, err)
		} else {
			c.CallAnswered(now, k, got)
		}
	})
	s.mu.Lock()
	close(s.callEnded) // only now: a caller that waits for k finds its work done
	s.callEnded = make(chan struct{})
	s.mu.Unlock()
}

var errSilent = errors.New("no answer")

// beat renews the session now. It returns once Redis has answered a call that was sent after beat
// began, or such a call has failed. It also returns if Redis is silent for about half a lease.
// Calls go on without it.
func (s *Session) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, read(s, (*core.Core).Silence), errSilent)
	defer cancel()
	return s.beatWithin(ctx, 2*s.cfg.TTL)
}

// begin has k finished in the background, and returns the number of the call to wait for. If there
// are too many calls, k is nil, and the last of those has to do.
func (s *Session) begin(k *core.Call, limit time.Duration) (n uint64, err error) {
	s.step(func(c *core.Core, now time.Duration) {
		n = c.LastCall()
		switch {
		case c.Left():
			err = core.ErrClosed
			if k != nil { // the session left since it was made, and Close waits for its end
				c.CallFailed(now, k, err)
			}
		case k != nil:
			n = k.Number()
			s.background(func() { s.finish(k, limit) })
		}
	})
	return n, err
}

// beatWithin is beat for as long as ctx allows, with a call of at most that length.
func (s *Session) beatWithin(ctx context.Context, limit time.Duration) error {
	n, err := s.begin(s.nextCall(), limit)
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		answered, failed, cause := s.core.CallState(n)
		ended := s.callEnded
		s.mu.Unlock()
		switch {
		case answered:
			return nil
		case failed && cause == nil:
			return core.ErrClosed // Redis has forgotten us, and we are leaving
		case failed:
			return cause
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
