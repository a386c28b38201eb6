package engine

import (
	"cmp"
	"slices"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A Reporter is a Listener that tells its figures to operators.
type Reporter interface {
	Report() message.PoolFigures
}

// Stats are the figures of a session.
type Stats struct {
	core.Stats
	Pools []message.PoolFigures // by name
}

// Stats returns the session's figures.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	out := Stats{Stats: s.core.Stats(s.now())}
	pools := s.core.Pools()
	s.mu.Unlock()
	out.Pools = figures(pools, func(*Pool, message.PoolFigures) {})
	return out
}

// figures asks the pools, which takes their locks: s.mu is not held. It shows each to see.
func figures(
	pools []*core.Pool, see func(*Pool, message.PoolFigures),
) (list []message.PoolFigures) {
	for _, p := range pools {
		own := p.Owner.(*Pool)
		if r, ok := own.listener.(Reporter); ok {
			f := r.Report()
			see(own, f)
			list = append(list, f)
		}
	}
	slices.SortStableFunc(list, func(a, b message.PoolFigures) int {
		return cmp.Compare(a.Name, b.Name)
	})
	return list
}

// info is what the next call of the heartbeat tells operators. telling is held.
func (s *Session) info(pools []*core.Pool) string {
	info := s.cfg.Info
	var seen []pooled
	info.Pools = figures(pools, func(p *Pool, f message.PoolFigures) {
		seen = append(seen, pooled{p, f})
	})
	s.warnHeld(seen)
	s.look(info.Pools)
	s.mu.Lock()
	stats := s.core.Stats(s.now())
	s.mu.Unlock()
	info.RoundTrip, info.Lost, info.Outages = stats.RoundTrip, stats.Lost, stats.Outages
	return info.Encode()
}

// AtCapacity is the error of a caller of the pool that waited for as long as it may.
func (p *Pool) AtCapacity() error {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	return p.s.core.AtCapacity(p.s.now())
}
