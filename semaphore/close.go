package semaphore

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// closeTimeout bounds how long Close waits for connection pools to end their connections, and for Redis.
const closeTimeout = 3 * time.Second

// Close releases all permits and ends the session. Waiting calls return ErrClosed; permits turn not held, and
// their Lost is closed. Connection pools are asked to end their connections first, for up to 3s; better close them before. An error
// means that Redis did not answer: what was held then ends with its lease. So do permits with passbuddy.Config.Fence whose connections did not end
// in those 3s. Closing twice does nothing.
func (s *Semaphore) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Semaphore) close() error {
	s.mu.Lock()
	s.closed = true
	// Requests are withdrawn while we still listen, by the drops of a last flight: a grant that crosses
	// its withdrawal is then dropped with it.
	for id, a := range s.asks {
		if id == a.ids[0] {
			s.withdraw(a, fmt.Errorf("%w", ErrClosed))
		}
	}
	s.offers = nil
	s.mu.Unlock()
	s.tellShares(func(sh Sharer) { sh.Closed() })

	s.mu.Lock()
	s.awaitReturns()
	s.left = true
	var requests []string
	requests = s.takeDrops()
	for id, p := range s.permits {
		if p.marks == 0 { // else its pool could not end that in time: it stays counted until others have
			requests = append(requests, redisscript.Request(s.ttlMillis(), id))
		}
		p.lose()
	}
	clear(s.permits)
	for _, t := range []*time.Timer{s.again, s.watchdog} {
		if t != nil {
			t.Stop()
		}
	}
	s.mu.Unlock()

	err := s.leaveForGood(requests)
	s.cancel()
	s.mu.Lock()
	ps := s.pubsub
	s.mu.Unlock()
	_ = ps.Close()
	s.closeOwn() // which ends what still waits for a reply
	s.wg.Wait()
	if s.ownClient {
		_ = s.client.Close()
	}
	if err != nil {
		return fmt.Errorf("leave %q: %w", s.base, unavailable(err))
	}
	return nil
}

// takeDrops is what is still to be removed, as requests: what was not sent, what Redis did not answer, and
// what it may not answer. s.mu is held.
func (s *Semaphore) takeDrops() (requests []string) {
	drops := append(s.drops, s.late...)
	if s.aloft != nil {
		drops = append(drops, s.aloft.drops...)
	}
	s.drops, s.late = nil, nil
	for _, d := range drops {
		requests = append(requests, redisscript.Request(s.ttlMillis(), d.ids...))
		select {
		case d.done <- nil:
		default:
		}
	}
	return requests
}

// leaveForGood leaves, and leaves again if something was on its way meanwhile that Redis may have executed
// after that: a call of the heartbeat would have us join anew, and a flight can have been granted permits
// that nobody waits for any more. Nothing new begins, as s.left is set. It waits for their replies for as
// long as they can be expected to take, then leaves it at that.
func (s *Semaphore) leaveForGood(requests []string) error {
	s.mu.Lock()
	limit := max(closeTimeout, min(4*s.heart.rtt, 2*closeTimeout))
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	crossing := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.heart.calls) > 0 || s.flying
	}
	crossed := crossing()
	if err := s.leave(ctx, requests); err != nil || !crossed {
		return err
	}
	s.mu.Lock()
	late := time.NewTimer(min(closeTimeout/3, max(4*s.heart.rtt, time.Second/2)))
	s.mu.Unlock()
	defer late.Stop()
	for waiting := true; waiting && crossing(); {
		s.mu.Lock()
		ended := s.heart.ended
		s.mu.Unlock()
		select {
		case <-ended:
		case <-time.After(5 * time.Millisecond): // a flight
		case <-late.C:
			waiting = false
		}
	}
	s.mu.Lock()
	requests = append(requests, s.takeDrops()...) // all of it: what crossed may have brought back what the first one dropped
	s.mu.Unlock()
	return s.leave(ctx, requests)
}

// leave takes the session out of Redis, with what requests name. It can be said twice, and is, over another
// connection, if there is no answer for a while.
func (s *Semaphore) leave(ctx context.Context, requests []string) error {
	s.mu.Lock()
	epoch, again := s.epoch, max(s.hedgeAfter(), 4*s.heart.rtt, closeTimeout/12)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	const tries = 3
	left := make(chan error, tries)
	for sent, failed := 0, 0; ; {
		if sent < tries {
			sent++
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				s.mu.Lock()
				expected := s.anchor.expected(s.sinceStart())
				s.mu.Unlock()
				left <- redisscript.Leave(ctx, s.own, s.keys, true, expected, s.identity.session, epoch, requests)
			}()
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

// awaitReturns waits until the connection pools have given everything back and nothing is on its way to Redis any
// more, bounded. s.mu is held.
func (s *Semaphore) awaitReturns() {
	late := false
	timer := time.AfterFunc(closeTimeout, func() {
		s.mu.Lock()
		late = true
		s.mu.Unlock()
		s.returned.Broadcast()
	})
	defer timer.Stop()
	for !late {
		held := 0
		for _, sh := range s.shares {
			held += sh.held
		}
		if held == 0 && (!s.flying || s.down != nil) {
			return // if Redis does not answer, what is held ends with its lease
		}
		s.returned.Wait()
	}
}

func (s *Semaphore) closeOwn() {
	if s.borrowed {
		return
	}
	for _, c := range []redis.UniversalClient{s.own, s.flightClient, s.operator} {
		_ = c.Close()
	}
}
