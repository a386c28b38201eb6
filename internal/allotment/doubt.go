package allotment

import (
	"context"
	"errors"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/engine"
	"time"
)

// This file is for connections that are closed on our side, and whose backends perhaps live on: the
// network has lost them. Such a connection is leaving, in doubt, and its permit stays counted. The
// pool lends one of its connections to have Postgres end those backends, and to see them gone.
//
//	              Doubt                 seen gone, or EOF after all
//	leaving ----------------> in doubt ----------------------------> gone
//	                             | | |                                 ^
//	                             | | +--- doubtMost ---> outlived -----+ its backend is ended over the next connection that is
//	                             | +----- server down -> outlived -----+ opened, if by then it is still there
//	                             +------- lend --------> outlived -----+
//
// Invariants.
//
//   - A connection in doubt is in the state leaving, and counts as such.
//   - One goroutine, resolve, asks for them all, and lives only as long as there are any.
//   - lend takes the permit of one from its backend, at most one in each round of resolve: where
//     every permit of the pool is in doubt, or used by queries that last, nobody could ask
//     otherwise. The urgent caller gets it, past everybody, so its connection is the only one that
//     is opened before the round has ended. For that time, a connect and some short queries, there can be
//     one backend more than permits.
//
// "server down" is an attempt to connect that failed for a reason of its own. Its callers are then
// to hear of that reason, as from a bare pool, instead of waiting for permits in doubt; and a
// server that is not there has no backends.

const (
	// doubtMost is how long a permit is counted for a backend that can be neither ended nor seen
	// gone: it is another role's, or behind a pooler.
	doubtMost = 15 * time.Second
	// lendAfter is how long resolve waits for a connection before it lends a permit.
	lendAfter = 100 * time.Millisecond
	// resolveMost bounds one round.
	resolveMost = 5 * time.Second
	// resolveAgain is the pause before what failed is tried again, and resolveRefused what the
	// server has refused to end.
	resolveAgain   = 50 * time.Millisecond
	resolveRefused = time.Second
	// outlivedMost bounds what is remembered.
	outlivedMost = 1000
)

// A Suspect is the backend of a connection in doubt.
type Suspect struct {
	PID      uint32
	Since    time.Time // it was there: a backend of that PID which has started later is another
	Addr     string    // of the server, as the socket knew it
	Recorded Backend   // with Options.Fence: which it is, exactly
	Ended    func()    // tells the socket that nobody waits for its backend any more; it may be called twice

	bound *time.Timer
}

// SuspectEnder is a [Pool] that can have Postgres end backends.
type SuspectEnder interface {
	Pool
	// EndSuspects calls ask with how to have backends ended over a connection of the pool, once
	// there is one. ctx is urgent (see Enter). An error says that there was none.
	EndSuspects(ctx context.Context, ask func(end EndFunc)) error
}

// EndFunc ends backends, and reports which are gone. An error says that the server did not answer.
type EndFunc func(ctx context.Context, suspects []*Suspect) (gone []bool, err error)

// Doubt puts c, which leaves by that if it has not left yet, in doubt. It reports false if the pool
// cannot do anything about it.
func (c *Conn) Doubt(s *Suspect) bool {
	a := c.a
	if _, ok := a.pool.(SuspectEnder); !ok {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.state == gone || a.closed {
		return false
	}
	if c.state == out {
		a.turns--
	}
	if c.state < leaving {
		c.leave()
	}
	if a.doubts == nil {
		a.doubts = make(map[*Conn]*Suspect)
	}
	if c.recorded != nil {
		s.Recorded = *c.recorded
	}
	a.doubts[c], c.doubted = s, true
	s.bound = time.AfterFunc(doubtMost, func() { a.giveUp(c) })
	a.settle()
	return true
}

// undoubt takes c, which is gone, out of those in doubt, if it is one. The lock is held.
func (a *Allotment) undoubt(c *Conn) {
	if s := a.doubts[c]; s != nil {
		s.bound.Stop()
		delete(a.doubts, c)
	}
}

// outlive notes that the backend of c, which is in doubt, is not waited for any longer. The lock is
// held; s.Ended must be called without it.
func (a *Allotment) outlive(c *Conn) *Suspect {
	s := a.doubts[c]
	a.undoubt(c)
	c.lapsed = nil // with Options.Fence it stays in quarantine, until somebody sees that backend gone
	if len(a.outlived) < outlivedMost {
		a.outlived = append(a.outlived, s)
	}
	return s
}

// giveUp frees the permit of c, should it still be in doubt.
func (a *Allotment) giveUp(c *Conn) {
	a.mu.Lock()
	var s *Suspect
	if a.doubts[c] != nil {
		s = a.outlive(c)
	}
	a.mu.Unlock()
	if s != nil {
		s.Ended()
	}
}

// resolveSoon starts resolve if there is something to ask, and nobody does. The lock is held.
func (a *Allotment) resolveSoon() {
	if !a.resolving && !a.closed && !a.shut && (len(a.doubts) > 0 || a.reopened && len(a.outlived) > 0) {
		a.resolving = true
		go a.resolve()
	}
}

// resolve has the pool ask until no connection is in doubt.
func (a *Allotment) resolve() {
	ender := a.pool.(SuspectEnder)
	for {
		a.mu.Lock()
		if a.closed || a.shut || len(a.doubts) == 0 && !(a.reopened && len(a.outlived) > 0) {
			a.resolving = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		time.Sleep(a.round(ender))
	}
}

// round asks once, and returns how long to wait before the next time.
func (a *Allotment) round(ender SuspectEnder) (pause time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), urgentKey{a}, true), resolveMost)
	defer cancel()
	lend := time.AfterFunc(lendAfter, a.lend)
	defer func() {
		lend.Stop()
		a.mu.Lock()
		if a.lent != nil { // the urgent caller had no use for it
			a.unlend()
			a.settle()
		}
		a.mu.Unlock()
	}()
	pause = resolveAgain
	err := ender.EndSuspects(ctx, func(end EndFunc) {
		lend.Stop()
		conns, suspects := a.suspects()
		gone, err := end(ctx, suspects)
		if err != nil {
			return // the connection was dead as well: its owner finds out, and there is another
		}
		pause = 0
		for i, s := range suspects {
			if gone[i] {
				s.Ended()
			} else if conns[i] != nil {
				pause = resolveRefused
			}
		}
		a.mu.Lock()
		a.reopened = false
		a.forgetOutlived(suspects)
		a.mu.Unlock()
	})
	switch {
	case err == nil:
	case errors.Is(err, core.ErrClosed), errors.Is(err, ErrPoolClosed):
		a.mu.Lock()
		a.shut = true
		a.mu.Unlock()
		return 0
	case !waitsForPermit(err):
		a.serverDown()
	}
	return pause
}

// waitsForPermit reports whether err says that there was no permit, or no time, rather than no
// server.
func waitsForPermit(err error) bool {
	return errors.Is(err, core.ErrCapacity) || errors.Is(err, core.ErrUnavailable) || errors.Is(err, core.ErrLost) ||
		errors.Is(err, context.DeadlineExceeded)
}

// suspects lists what to ask about: those in doubt, with their connections, and those outlived,
// without.
func (a *Allotment) suspects() (conns []*Conn, suspects []*Suspect) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c, s := range a.doubts {
		conns, suspects = append(conns, c), append(suspects, s)
	}
	for _, s := range a.outlived {
		conns, suspects = append(conns, nil), append(suspects, s)
	}
	return conns, suspects
}

// forgetOutlived forgets those that were asked about. What the server refused to end it will refuse
// again. The lock is held.
func (a *Allotment) forgetOutlived(asked []*Suspect) {
	done := make(map[*Suspect]bool, len(asked))
	for _, s := range asked {
		done[s] = true
	}
	kept := a.outlived[:0]
	for _, s := range a.outlived {
		if !done[s] {
			kept = append(kept, s)
		}
	}
	clear(a.outlived[len(kept):])
	a.outlived = kept
}

// serverDown frees the permits of all in doubt.
func (a *Allotment) serverDown() {
	var ended []*Suspect
	a.mu.Lock()
	for c := range a.doubts {
		ended = append(ended, a.outlive(c))
	}
	a.reopened = false // until a connection is opened
	a.mu.Unlock()
	for _, s := range ended {
		s.Ended()
	}
}

// lend gives the urgent caller the permit of a connection in doubt, if it still waits for one. It may
// have been served, or may have given up, at the same moment: then nothing is lent. A caller that has
// a turn and waits to open a connection comes after it, and so do debts: the permit is kept aside
// until the urgent caller opens its connection. The count of permits owned stays the same.
func (a *Allotment) lend() {
	a.mu.Lock()
	var s *Suspect
	opener, w := a.openers.head, a.waiters.head
	if opener != nil && !opener.urgent {
		opener = nil
	}
	if a.lent == nil && !a.closed && (opener != nil || w != nil && w.urgent) {
		for c := range a.doubts {
			if c.permit == nil || !c.permit.Held() {
				continue
			}
			s = a.outlive(c)
			p := c.permit
			c.permit = nil
			c.become(gone)
			delete(a.all, c)
			a.due = min(a.due, a.conns[leaving])
			if opener != nil {
				a.openers.pop()
				a.spare = append(a.spare, p)
				opener.conn = a.bind()
				close(opener.ready)
			} else {
				a.lent = p
				a.waiters.pop()
				w.conn = a.take(w.claim)
				close(w.ready)
			}
			break
		}
		a.settle()
	}
	a.mu.Unlock()
	if s != nil {
		s.Ended()
	}
}

// unlend makes what was lent a spare permit like any other. The lock is held.
func (a *Allotment) unlend() {
	if a.lent == nil {
		return
	}
	a.spare = append(a.spare, a.lent)
	a.lent = nil
	if a.closed {
		a.giveSpare()
	}
}

// More opens a connection beyond those that callers have turns for, if the fleet has a permit to
// spare. Otherwise it returns nil.
func (a *Allotment) More(ctx context.Context) *Conn {
	f, ok := a.fleet.(interface {
		Try(context.Context) (*engine.Permit, error)
	})
	if !ok {
		return nil
	}
	p, err := f.Try(ctx)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !p.Held() { // lost meanwhile: whoever was told of that did not find it here
		a.fleet.Give(p)
		return nil
	}
	a.owned++
	a.spare = append(a.spare, p)
	if a.closed {
		a.giveSpare()
		return nil
	}
	return a.bind()
}
