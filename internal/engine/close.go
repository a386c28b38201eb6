package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// closeTimeout bounds how long Close waits for connection pools to end their connections, and for
// Redis.
const closeTimeout = 3 * time.Second

// Close releases all permits and ends the session. Closing twice does nothing.
func (s *Session) Close() error { return s.closeOnce() }

func (s *Session) close() error {
	s.stepAndTell(func(c *core.Core, now time.Duration) { c.Close(now) })
	s.awaitReturns()
	var requests []string
	s.step(func(c *core.Core, now time.Duration) {
		requests = c.Leave(now)
		if s.timer != nil {
			s.timer.Stop()
		}
	})
	err := s.leaveForGood(requests)
	if err != nil {
		err = fmt.Errorf("leave %q: %w", s.cfg.Base, core.Unavailable(err))
	}
	s.step(func(c *core.Core, _ time.Duration) { c.LeaveEnded(err) })
	s.cancel()
	s.mu.Lock()
	ps := s.pubsub
	s.mu.Unlock()
	_ = ps.Close()
	s.clients.close() // which ends what still waits for a reply
	s.wg.Wait()
	if s.ownCaller {
		_ = s.caller.Close()
	}
	return err
}

// awaitReturns waits until the connection pools have given everything back and nothing is on its
// way to Redis any more, bounded.
func (s *Session) awaitReturns() {
	late := false
	timer := time.AfterFunc(closeTimeout, func() {
		s.mu.Lock()
		late = true
		s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !late && !s.core.Returned() {
		s.changed.Wait()
	}
}

// leaveForGood leaves, and leaves again if Redis may have executed a message of the session after
// the first time. A call of the heartbeat would make the session join anew. A batch may have been
// granted permits for which no caller waits any more. The session sends nothing new. leaveForGood
// waits for the replies for as long as they can be expected to take. Then it leaves a second time,
// whether they came or not.
func (s *Session) leaveForGood(requests []string) error {
	ctx, cancel := context.WithTimeout(context.Background(),
		max(closeTimeout, min(4*s.rtt(), 2*closeTimeout)))
	defer cancel()
	crossed := read(s, (*core.Core).Crossing)
	if err := s.leave(ctx, requests); err != nil || !crossed {
		return err
	}
	late := time.Now().Add(min(closeTimeout/3, max(4*s.rtt(), time.Second/2)))
	for read(s, (*core.Core).Crossing) && time.Now().Before(late) {
		time.Sleep(5 * time.Millisecond)
	}
	// Drop all of it again: what crossed may have brought back what the first leave dropped.
	s.step(func(c *core.Core, _ time.Duration) { requests = append(requests, c.Leftover()...) })
	return s.leave(ctx, requests)
}

// leave takes the session out of Redis, with what requests name. It is safe to repeat. If there is
// no answer for a while, it is sent again over another connection.
func (s *Session) leave(ctx context.Context, requests []string) error {
	s.mu.Lock()
	epoch, again := s.core.Epoch(), max(s.core.HedgeAfter(), 4*s.core.RoundTrip(), closeTimeout/12)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const tries = 3
	left := make(chan error, tries)
	for sent, failed := 0, 0; ; {
		if sent < tries {
			sent++
			s.wg.Go(func() {
				left <- redisscript.Leave(ctx, s.clients.own, s.keys, true,
					s.expected(), s.name, epoch, requests)
			})
		}
		select {
		case err := <-left:
			if failed++; err == nil || failed == sent && (sent == tries || !isBroken(err)) {
				return err
			}
		case <-time.After(again):
			again *= 2
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
