package engine

import (
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// send sends batches until there is nothing to send. Several senders can begin; the core gives out
// one batch at a time, and those that find none end.
func (s *Session) send() {
	var b *core.Batch
	s.stepAndTell(func(c *core.Core, now time.Duration) {
		s.starting = false
		b = c.NextBatch(now)
	})
	for b != nil {
		b = s.exchange(b, false)
	}
}

// sendAgain sends b once more over another connection, as its first one may be dead. The first
// reply counts; the sender that waits for the other finds nothing to do.
func (s *Session) sendAgain(b *core.Batch) {
	for b = s.exchange(b, true); b != nil; {
		b = s.exchange(b, false)
	}
}

// exchange sends b, has the core take what becomes of it, and returns the next batch. A batch whose
// connection was broken is sent again at once: another one may be well.
func (s *Session) exchange(b *core.Batch, again bool) (next *core.Batch) {
	got, err := s.run(b, again)
	if isBroken(err) && s.ctx.Err() == nil {
		again = true
		got, err = s.run(b, again)
	}
	if err != nil && !errors.Is(err, message.ErrGone) {
		reloadSlots(s.ctx, s.clients.batches)
	}
	s.stepAndTell(func(c *core.Core, now time.Duration) {
		switch {
		case err == nil:
			c.BatchAnswered(now, b, got, again)
		case errors.Is(err, message.ErrGone):
			c.BatchFailed(now, b, core.Gone, err)
		default:
			wasUp := c.Down() == nil
			c.BatchFailed(now, b, core.Failed, err)
			if wasUp && redis.HasErrorPrefix(err, "READONLY") {
				c.BeatSoon() // the primary was demoted: does the subscription have to move, too?
			}
		}
		next = c.NextBatch(now)
	})
	return next
}

func (s *Session) run(b *core.Batch, again bool) (message.Exchanged, error) {
	x := b.X
	if again {
		s.mu.Lock()
		x = s.core.Again(s.now(), b)
		s.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.batchTimeout())
	defer cancel()
	return redisscript.Exchange(ctx, s.scripter(s.clients.batches), s.keys, x)
}

// batchTimeout bounds the wait for the reply to a batch. A reply is worth nothing once the trust of
// what it grants is over. If the connections are the application's, a hung one costs the
// application, too: then the bound is only longer than replies have been seen to take.
func (s *Session) batchTimeout() time.Duration {
	if s.clients.borrowed {
		return s.patience()
	}
	return max(s.cfg.TTL-s.cfg.TTL/10, 20*time.Millisecond)
}

// patience is longer than replies have been seen to take.
func (s *Session) patience() time.Duration {
	return max(s.cfg.TTL/4, min(3*s.rtt(), s.cfg.TTL-s.cfg.TTL/10))
}

// rtt is how long replies take.
func (s *Session) rtt() time.Duration { return read(s, (*core.Core).RoundTrip) }

// isBroken reports whether err is of a connection that another one may not have.
func isBroken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.ErrClosedPipe)
}
