package allotment

import (
	"slices"

	"github.com/passbuddy/passbuddy/semaphore"
)

// permits are the permits of a pool that are under no slot, and the count of those that are
// uncounted: the engine did not grant them. This process gave them to itself (FallbackConns), or
// lost the lease of a connection that it kept (KeepOnLoss).
//
// Invariants, while nobody holds the allotment's lock:
//
//   - a permit is in spare, is lent, or is under one slot that is not gone;
//   - uncounted is the number of nils in spare, and of slots without a permit that are not lost.
type permits struct {
	spare     []*semaphore.Permit // nil: an uncounted one
	uncounted int
	lent      *semaphore.Permit // for the urgent caller alone: see lend
}

// spares is how many permits are under no slot.
func (p *permits) spares() int {
	if p.lent != nil {
		return len(p.spare) + 1
	}
	return len(p.spare)
}

// add makes a permit spare; nil is an uncounted one, which uncounted includes already.
func (p *permits) add(permit *semaphore.Permit) { p.spare = append(p.spare, permit) }

// take removes the newest spare permit. There is one.
func (p *permits) take() *semaphore.Permit {
	n := len(p.spare) - 1
	permit := p.spare[n]
	p.spare = p.spare[:n]
	return permit
}

// remove takes permit out of the spare ones, and reports whether it was there.
func (p *permits) remove(permit *semaphore.Permit) bool {
	n := len(p.spare)
	p.spare = slices.DeleteFunc(p.spare, func(other *semaphore.Permit) bool { return other == permit })
	return len(p.spare) < n
}

// countIn puts permit in the place of a spare one that is uncounted, and reports whether there was
// one.
func (p *permits) countIn(permit *semaphore.Permit) bool {
	i := slices.Index(p.spare, nil)
	if i >= 0 {
		p.spare[i] = permit
		p.uncounted--
	}
	return i >= 0
}

// takeStale removes a spare permit whose lease cannot be proven any more, and returns it, or nil.
func (p *permits) takeStale() *semaphore.Permit {
	for i := len(p.spare) - 1; i >= 0; i-- {
		if permit := p.spare[i]; permit != nil && !permit.Held() {
			p.remove(permit)
			return permit
		}
	}
	return nil
}

// returnLent makes the lent permit, if there is one, a spare permit like any other.
func (p *permits) returnLent() {
	if p.lent != nil {
		p.add(p.lent)
		p.lent = nil
	}
}
