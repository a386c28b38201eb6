package semaphore

import (
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

type offer struct {
	share *Share
	n     int
}

// batch is one exchange and what it was made of.
type batch struct {
	x     redisscript.Exchange
	asks  []*ask
	drops []*drop
	offer *Share
}

// nextBatch takes the next batch from the outbox, or nil. s.mu is held.
func (s *Semaphore) nextBatch() *batch {
	b := &batch{}
	n := min(len(s.drops), batchMost)
	b.drops = append(b.drops, s.drops[:n]...)
	s.drops = remove(s.drops, n)
	for len(s.outbox) > 0 && len(b.asks) < batchMost {
		a := s.outbox[0]
		s.outbox = remove(s.outbox, 1)
		a.queued = false
		if !a.settled { // by the reply to an earlier time it was sent: it may even be released by now
			b.asks = append(b.asks, a)
		}
	}
	if len(s.offers) > 0 {
		b.offer = s.offers[0].share
		b.x.Offered, b.x.Offerer = s.offers[0].n, b.offer.name
		s.offers = s.offers[1:]
	}
	if len(b.drops)+len(b.asks) == 0 && b.offer == nil && !s.confirms {
		return nil
	}
	b.x.Session, b.x.TTLMillis, b.x.MostWaiting = s.identity.session, s.ttlMillis(), s.cfg.MaxWaiters
	b.x.MoveMicros = s.takeMoveCost()
	// Permits of a session with a minimum are counted one by one.
	lean := s.cfg.Min == 0
	for _, d := range b.drops {
		if lean && d.plain {
			b.x.Release = append(b.x.Release, d.ids[0])
		} else {
			b.x.Drop = append(b.x.Drop, redisscript.Request(s.ttlMillis(), d.ids...))
		}
	}
	for _, a := range b.asks {
		a.sent = true
		switch alone := lean && len(a.ids) == 1; {
		case alone && a.kind == redisscript.Wait:
			b.x.Waits = append(b.x.Waits, a.ids[0])
		case alone && a.kind == redisscript.Try && a.permits[0].share == nil: // the script counts a pool's permits in its own lane
			b.x.Tries = append(b.x.Tries, a.ids[0])
		default:
			kind := a.kind
			if a.share != nil && kind == redisscript.Share && !a.share.everHeld {
				kind = redisscript.Join
			}
			b.x.Ask = append(b.x.Ask, redisscript.Ask{Kind: kind, Request: redisscript.Request(s.ttlMillis(), a.ids...)})
		}
	}
	return b
}

// remove drops the first n elements and lets go of the array when none is left.
func remove[T any](list []T, n int) []T {
	if n == len(list) {
		return nil
	}
	return list[n:]
}

// putBack returns a batch to the outbox, as if it had not been sent. s.mu is held.
func (s *Semaphore) putBack(b *batch) {
	s.returnMoveCost(b.x.MoveMicros)
	s.drops = append(b.drops, s.drops...)
	var asks []*ask
	for _, a := range b.asks {
		if !a.settled && !a.queued {
			a.queued = true
			asks = append(asks, a)
		}
	}
	s.outbox = append(asks, s.outbox...)
}
