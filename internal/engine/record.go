package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// reapTimeout bounds a reap: a checkout, and a query or the end of a backend. Redis asks again for
// what it did not achieve.
const reapTimeout = 5 * time.Second

// reap has a pool end backends, or look for them.
func (s *Session) reap(fx core.Effects) {
	l := fx.Reaper.Owner.(*Pool).listener
	ctx, cancel := context.WithTimeout(s.ctx, reapTimeout)
	defer cancel()
	if len(fx.End) > 0 {
		gone := l.EndBackends(ctx, tags(fx.End))
		s.stepAndTell(func(c *core.Core, now time.Duration) { c.Ended(now, fx.End, gone) })
	}
	if len(fx.Look) > 0 {
		s.answerLook(fx, l.BackendsGone(ctx, tags(fx.Look)))
		s.step(func(c *core.Core, _ time.Duration) { c.Looked() })
	}
}

func tags(list []core.Record) []string {
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = r.Tag
	}
	return out
}

// answerLook tells Redis what a look has seen. Redis frees the permits whose backends are gone, as
// far as those are still recorded. A look that saw nothing, or failed, is an answer, too: others
// may wait for it. So it is given in time of its own.
func (s *Session) answerLook(fx core.Effects, gone []bool) {
	ctx, cancel := context.WithTimeout(s.ctx, reapTimeout)
	defer cancel()
	var ids, records []string
	for i, r := range fx.Look {
		if i < len(gone) && gone[i] {
			ids, records = append(ids, r.ID), append(records, r.Text)
		}
	}
	select {
	case s.recording <- struct{}{}:
		defer func() { <-s.recording }()
	case <-ctx.Done():
		return
	}
	freed, err := redisscript.Gone(ctx, s.scripter(s.clients.own), s.keys,
		s.expected(), fx.LookEpoch, fx.LookSince, ids, records)
	switch {
	case err != nil && s.ctx.Err() == nil && len(ids) > 0:
		s.warn("permits whose Postgres backends are gone could not be freed", "error", err)
	case freed > 0:
		s.warn("a session ended without release: its Postgres backends are gone, "+
			"and their permits free", "permits", freed)
	}
}

// ClearBackend says that p covers no backend any more, because another connection is about to be
// opened under p. It returns nil if Redis knows of no backend. Otherwise the connection may be
// opened only after record returned nil: see core.Core.ClearBackend. Errors of record are those of
// RecordBackend's.
func (p *Pool) ClearBackend(permit *Permit) (record func(context.Context) error) {
	s := p.s
	text, ok := "", false
	s.step(func(c *core.Core, _ time.Duration) { text, ok = c.ClearBackend(&permit.Permit) })
	switch {
	case !ok:
		return lostRecord
	case text == "":
		return nil
	}
	return func(ctx context.Context) error {
		err := s.record(ctx, permit, text)
		if err == nil {
			s.step(func(c *core.Core, _ time.Duration) { c.BackendCleared(&permit.Permit, text) })
		}
		return err
	}
}

// RecordBackend says which backend permit covers, in place of what it covered before. It must be
// called before another connection can be opened under permit, and is done at once; record then
// tells Redis. The pool should hand out no connection before record returned nil. From then on,
// whatever happens to the process, its backend cannot outlive the permit by much, and cannot go
// uncounted. See core.Core.RecordBackend for what crosses record.
//
// Errors of record: core.ErrLost if permit is not held any more; core.ErrUnavailable if Redis did
// not answer for as long as its lease was trusted, a TTL at most; the context's.
func (p *Pool) RecordBackend(permit *Permit, tag string) (record func(context.Context) error) {
	text, ok := "", false
	p.s.step(func(c *core.Core, _ time.Duration) {
		text, ok = c.RecordBackend(&permit.Permit, tag)
	})
	if !ok {
		return lostRecord
	}
	return func(ctx context.Context) error { return p.s.record(ctx, permit, text) }
}

func lostRecord(context.Context) error { return fmt.Errorf("%w", core.ErrLost) }

const (
	// maxRecords bounds the records on their way, and with them the connections to Redis. If
	// replies take long, a process that opens many connections at once waits for this many
	// together.
	maxRecords = 4
	// maxRecordTries bounds the calls on their way for one record.
	maxRecordTries = 4
)

func (s *Session) record(ctx context.Context, p *Permit, text string) error {
	select {
	case s.recording <- struct{}{}:
		defer func() { <-s.recording }()
	case <-ctx.Done():
		return GiveUp(ctx, core.Unavailable(errSilent))
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL) // its own, not that of those before it
	defer cancel()
	patience, most, limit := s.patience(), maxRecordTries, s.cfg.TTL
	if s.clients.borrowed { // the connections are the application's
		most, limit = 1, patience
	}
	// A record can be sent twice, even at the same time. A record without an answer is hedged over
	// another connection, and goes on: a slow Redis may answer it in time. A record that failed is
	// repeated. A connection that was just made should not end because one reply was lost; once the
	// lease is lost, the pool ends it.
	answers := make(chan error, maxRecordTries)
	err := core.Unavailable(errSilent)
	for underWay := 0; ; {
		if underWay < most {
			underWay++
			go func() {
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				answers <- s.recordOnce(ctx, p.ID, text)
			}()
		}
		select {
		case err = <-answers:
			underWay--
		case <-time.After(patience):
			if !p.Held() {
				return err
			}
			continue
		case <-ctx.Done():
			return GiveUp(ctx, err)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, message.ErrNotHeld):
			s.step(func(c *core.Core, now time.Duration) { c.NotHeld(now, &p.Permit) })
			return fmt.Errorf("%w: %q does not hold it any more", core.ErrLost, s.cfg.Base)
		}
		err = core.Unavailable(err)
		select {
		case <-time.After(min(s.cfg.RetryInterval, core.MaxRetryPause)):
		case <-ctx.Done():
			return GiveUp(ctx, err)
		}
		if !p.Held() {
			return err
		}
	}
}

// recordOnce records once, after a heartbeat if Redis does not know the session.
func (s *Session) recordOnce(ctx context.Context, id, text string) error {
	for again := false; ; again = true {
		s.mu.Lock()
		epoch, expected := s.core.Epoch(), s.core.Expected(s.now())
		s.mu.Unlock()
		err := redisscript.RecordBackend(ctx, s.scripter(s.clients.own), s.keys,
			expected, s.name, epoch, id, text)
		if again || !errors.Is(err, message.ErrGone) {
			return err
		}
		if err := s.beat(ctx); err != nil {
			return err
		}
	}
}
