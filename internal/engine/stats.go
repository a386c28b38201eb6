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
	Pools []message.PoolFigures // of all pools that are open, by name
}

// Stats returns the session's figures.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	out := Stats{Stats: s.core.Stats(s.now())}
	seated := s.core.Pools()
	s.mu.Unlock()
	out.Pools = s.figures(seated, func(*Pool, message.PoolFigures) {})
	return out
}

// shown are the pools that operators see: those in the session, and those with a name. A pool that
// holds and asks for nothing is not in the session, but it is open, and its counters go on. A pool
// that is closed has no name any more, and stays in the session while it holds something.
func (s *Session) shown(seated []*core.Pool) []*Pool {
	list := make([]*Pool, 0, len(seated))
	here := make(map[*Pool]bool, len(seated))
	for _, p := range seated {
		own := p.Owner.(*Pool)
		here[own] = true
		list = append(list, own)
	}
	for _, p := range s.names.pools() {
		if !here[p] {
			list = append(list, p)
		}
	}
	return list
}

// figures asks the pools, which takes their locks: s.mu is not held. It shows each to see. Figures
// of pools that have the same name are added up: one is closed, and the next has its name already.
func (s *Session) figures(
	seated []*core.Pool, see func(*Pool, message.PoolFigures),
) (list []message.PoolFigures) {
	for _, p := range s.shown(seated) {
		if r, ok := p.listener.(Reporter); ok {
			f := r.Report()
			see(p, f)
			list = append(list, f)
		}
	}
	slices.SortStableFunc(list, func(a, b message.PoolFigures) int {
		return cmp.Compare(a.Name, b.Name)
	})
	named := list[:0]
	for _, f := range list {
		if last := len(named) - 1; last >= 0 && f.Name != "" && named[last].Name == f.Name {
			named[last].Add(f)
		} else {
			named = append(named, f)
		}
	}
	return named
}

// info is what the next call of the heartbeat tells operators. telling is held.
func (s *Session) info(seated []*core.Pool) string {
	info := s.cfg.Info
	info.Pools = s.figures(seated, s.warnHeld)
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
