package allotment

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
)

// This file is for connections that are closed on our side, and whose backends perhaps live on: the
// network has lost them. The slot of such a connection is leaving, in doubt, and its permit stays
// counted. The pool lends one of its connections to have Postgres end those backends, and to see
// them gone.
//
//	              Doubt                 seen gone, or EOF after all
//	leaving ----------------> in doubt ----------------------------> gone
//	                             | | |                                 ^
//	                             | | +-- doubtTimeout --> outlived ----+
//	                             | +---- server down ---> outlived ----+
//	                             +------ lend ----------> outlived ----+
//
// Outlived backends are ended over the next connection that is opened, if they are still there.
//
// Invariants.
//
//   - A slot in doubt is in the state leaving, and counts as such.
//   - One goroutine, resolve, asks for them all, and lives only as long as there are any.
//   - lend takes the permit of one from its backend, at most one in each round of resolve. Where
//     every permit of the pool is in doubt, or used by queries that last, no connection could ask
//     otherwise. The urgent caller gets it, past everybody, so its connection is the only one that
//     is opened before the round has ended. For that time, a connect and some short queries, there
//     can be one backend more than permits.
//
// "server down" is an attempt to connect that failed for a reason of its own. Its callers are then
// to hear of that reason, as from a bare pool, instead of waiting for permits in doubt. A server
// that is not there has no backends.
type doubts struct {
	suspects  map[*Slot]*Suspect // of the slots in doubt
	outlived  []*Suspect         // of those that are gone by our count: backends that may live
	reopened  bool               // a connection was opened since they were last asked about
	resolving bool               // a goroutine is in resolve
	shut      bool               // the pool is closed, and can ask nothing
}

const (
	// doubtTimeout is how long a permit is counted for a backend that can be neither ended nor seen
	// gone: it is another role's, or behind a pooler.
	doubtTimeout = 15 * time.Second
	// lendAfter is how long resolve waits for a connection before it lends a permit.
	lendAfter = 100 * time.Millisecond
	// roundTimeout bounds one round of resolve.
	roundTimeout = 5 * time.Second
	// retryPause is the pause before what failed is tried again, and refusedPause before what the
	// server has refused to end.
	retryPause   = 50 * time.Millisecond
	refusedPause = time.Second
	// maxOutlived bounds what is remembered.
	maxOutlived = 1000
)

// A Suspect is the backend of a connection in doubt.
type Suspect struct {
	PID      uint32
	Since    time.Time // it was there: a backend of that PID that has started later is another
	Addr     string    // of the server, as the socket knew it
	Recorded Backend   // with Options.Fence: which it is, exactly
	Ended    func()    // nothing waits for its backend any more; it may be called twice

	timeout *time.Timer
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

// Doubt puts s, which leaves by that if it has not left yet, in doubt. It reports false if the pool
// cannot do anything about it.
func (s *Slot) Doubt(suspect *Suspect) bool {
	a := s.a
	if _, ok := a.pool.(SuspectEnder); !ok {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.state == gone || a.closed {
		return false
	}
	s.quit()
	if s.recorded != nil {
		suspect.Recorded = *s.recorded
	}
	a.doubts.suspects[s], s.doubted = suspect, true
	suspect.timeout = time.AfterFunc(doubtTimeout, func() { a.giveUp(s) })
	a.settle()
	return true
}

// pending reports whether there is anything to ask.
func (d *doubts) pending() bool { return len(d.suspects) > 0 || d.reopened && len(d.outlived) > 0 }

// remove takes s, which is gone, out of those in doubt, if it is one.
func (d *doubts) remove(s *Slot) {
	if suspect := d.suspects[s]; suspect != nil {
		suspect.timeout.Stop()
		delete(d.suspects, s)
	}
}

// outlive notes that nothing waits any longer for the backend of s, which is in doubt. The
// suspect's Ended must be called without the lock.
func (d *doubts) outlive(s *Slot) *Suspect {
	suspect := d.suspects[s]
	d.remove(s)
	s.lapsed = nil // with Options.Fence it stays in quarantine, until that backend is seen gone
	if len(d.outlived) < maxOutlived {
		d.outlived = append(d.outlived, suspect)
	}
	return suspect
}

// giveUp frees the permits of those slots that are still in doubt. It takes the lock.
func (a *Allotment) giveUp(slots ...*Slot) {
	var outlived []*Suspect
	a.mu.Lock()
	for _, s := range slots {
		if a.doubts.suspects[s] != nil {
			outlived = append(outlived, a.doubts.outlive(s))
		}
	}
	a.mu.Unlock()
	for _, suspect := range outlived {
		suspect.Ended()
	}
}

// resolveSoon starts resolve if there is anything to ask, and nobody does.
func (a *Allotment) resolveSoon() {
	if d := &a.doubts; !d.resolving && !a.closed && !d.shut && d.pending() {
		d.resolving = true
		go a.resolve()
	}
}

// resolve has the pool ask until no slot is in doubt. It, askOnce and lend take the lock.
func (a *Allotment) resolve() {
	ender := a.pool.(SuspectEnder)
	for {
		a.mu.Lock()
		if a.closed || a.doubts.shut || !a.doubts.pending() {
			a.doubts.resolving = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		time.Sleep(a.askOnce(ender))
	}
}

// askOnce asks once, and returns how long to wait before the next time.
func (a *Allotment) askOnce(ender SuspectEnder) (pause time.Duration) {
	ctx, cancel := context.WithTimeout(a.urgent(context.Background()), roundTimeout)
	defer cancel()
	lend := time.AfterFunc(lendAfter, a.lend)
	defer func() {
		lend.Stop()
		a.mu.Lock()
		if a.permits.lent != nil { // the urgent caller had no use for it
			a.permits.returnLent()
			if a.closed {
				a.giveSpare()
			}
			a.settle()
		}
		a.mu.Unlock()
	}()
	pause = retryPause
	err := ender.EndSuspects(ctx, func(end EndFunc) {
		lend.Stop()
		var slots []*Slot // of the suspects that are in doubt; the rest has outlived its slot
		var suspects []*Suspect
		a.mu.Lock()
		for s, suspect := range a.doubts.suspects {
			slots, suspects = append(slots, s), append(suspects, suspect)
		}
		suspects = append(suspects, a.doubts.outlived...)
		a.mu.Unlock()
		gone, err := end(ctx, suspects)
		if err != nil {
			return // that connection was dead as well: its owner finds out, and there is another
		}
		pause = 0
		for i, suspect := range suspects {
			if gone[i] {
				suspect.Ended()
			} else if i < len(slots) {
				pause = refusedPause
			}
		}
		a.mu.Lock()
		a.doubts.reopened = false
		a.doubts.forgetOutlived(suspects)
		a.mu.Unlock()
	})
	switch {
	case err == nil:
	case errors.Is(err, core.ErrClosed), errors.Is(err, ErrPoolClosed):
		a.mu.Lock()
		a.doubts.shut = true
		a.mu.Unlock()
		return 0
	case errors.Is(err, core.ErrCapacity), errors.Is(err, core.ErrUnavailable),
		errors.Is(err, core.ErrLost), errors.Is(err, context.DeadlineExceeded):
		// There was no permit, or no time.
	default: // the server is down
		a.mu.Lock()
		a.doubts.reopened = false // until a connection is opened
		inDoubt := slices.Collect(maps.Keys(a.doubts.suspects))
		a.mu.Unlock()
		a.giveUp(inDoubt...)
	}
	return pause
}

// forgetOutlived forgets those that were asked about. The server will refuse again what it refused
// to end.
func (d *doubts) forgetOutlived(asked []*Suspect) {
	done := make(map[*Suspect]bool, len(asked))
	for _, suspect := range asked {
		done[suspect] = true
	}
	d.outlived = slices.DeleteFunc(d.outlived, func(suspect *Suspect) bool { return done[suspect] })
}

// lend gives the urgent caller the permit of a slot in doubt, if it still waits for one. It may
// have been served, or may have given up, at the same moment: then nothing is lent. A caller that
// has a turn and waits to open a slot comes after it, as do debts: the permit is kept aside until
// the urgent caller opens its connection. The count of permits owned stays the same.
func (a *Allotment) lend() {
	a.mu.Lock()
	var suspect *Suspect
	opener, w := a.openers.next.v, a.waiters.next.v
	if opener != nil && !opener.urgent {
		opener = nil
	}
	if a.permits.lent == nil && !a.closed && (opener != nil || w != nil && w.urgent) {
		for s := range a.doubts.suspects {
			if s.permit == nil || !s.permit.Held() {
				continue
			}
			suspect = a.doubts.outlive(s)
			p := s.permit
			s.permit = nil
			s.become(gone)
			a.remove(s)
			a.debts.reopen(a.slots.n[leaving])
			if opener != nil {
				a.openers.pop()
				a.permits.add(p)
				opener.slot = a.newSlot()
				close(opener.ready)
			} else {
				a.permits.lent = p
				a.waiters.pop()
				w.slot = a.takeTurn(w.claim)
				close(w.ready)
			}
			break
		}
		a.settle()
	}
	a.mu.Unlock()
	if suspect != nil {
		suspect.Ended()
	}
}
