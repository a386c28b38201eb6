package allotment

import "time"

// patience is for how long a pool keeps its last free permit from the fleet. It doubles, up to
// maxPatience, when a permit is missed soon after it was given, and halves with every patienceCalm
// in which none was. So callers that think for longer do not lose their connection at each thought.
//
// Invariant: 0 <= doublings <= maxDoublings.
type patience struct {
	doublings int
	doubled   time.Time // when that last grew
	gave      time.Time // when a permit was last promised away that no caller has missed yet, or zero
}

const (
	// minPatience and maxPatience bound how long a permit lies unused before it is offered; the
	// rule is in cost.go.
	minPatience  = 4 * time.Millisecond
	maxPatience  = time.Second
	patienceCalm = 5 * time.Second
	maxDoublings = 4
)

// promise notes that free permits are promised to another pool.
func (p *patience) promise(now time.Time) { p.gave = now }

// miss notes that a caller has to wait. If a permit was given away a moment ago, within that time,
// the pool should have kept it for longer.
func (p *patience) miss(now time.Time, within time.Duration) {
	if !p.gave.IsZero() && now.Sub(p.gave) < within {
		p.doublings, p.doubled = min(p.reluctance(now)+1, maxDoublings), now
	}
	p.gave = time.Time{}
}

// reluctance is how often patience has doubled, and not halved since.
func (p *patience) reluctance(now time.Time) int {
	return max(0, p.doublings-int(min(now.Sub(p.doubled)/patienceCalm, maxDoublings)))
}

// length is how long the last free permit must lie unused, with that time to begin with.
func (p *patience) length(now time.Time, first time.Duration) time.Duration {
	return min(first<<p.reluctance(now), maxPatience)
}
