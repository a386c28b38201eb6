package core

import (
	"time"
)

// pool notes what it is told. With obey it gives back recalled permits, even one that is granted
// after its recall: a recall can overtake its grant.
type pool struct {
	Pool
	s    *stage
	obey bool

	told    []string
	permits []*Permit
	owed    int
	after   time.Duration // of the last recall
}

// pool adds a pool to the session.
func (s *stage) pool() *pool {
	s.tb.Helper()
	p := &pool{s: s}
	p.Owner = p
	if !s.Join(&p.Pool) {
		s.tb.Fatal("there is no number for a pool")
	}
	s.take()
	return p
}

// deliver tells a pool as engine.Session.tell does.
func (s *stage) deliver(e Event) {
	p, ok := e.Pool.Owner.(*pool)
	if !ok {
		s.tb.Fatalf("an event for a pool that the test did not make: %+v", e)
	}
	switch e.Kind {
	case Granted:
		p.permits = append(p.permits, e.Permits...)
		p.note("granted")
		p.pay()
	case LeaseLost:
		p.note("lost")
	case Told:
		switch n := s.Hear(e); {
		case n > 0 && e.Offered:
			p.note("promised")
			p.owed += n
		case n > 0:
			p.recalled(n, e.After)
		case n < 0:
			p.keep(-n)
		}
	case Forget:
		if s.HearAnew(e) {
			p.keep(p.owed)
		}
	case MakeRoom:
		p.recalled(e.N, e.After)
	case Waiting:
		if e.Waiting {
			p.note("wanted")
		} else {
			p.note("calm")
		}
	case Changed:
		p.note("changed")
	case Closing:
		p.note("closed")
		for len(p.permits) > 0 {
			p.give()
		}
	}
}

func (p *pool) note(what string) { p.told = append(p.told, what) }

// times counts how often p was told what.
func (p *pool) times(what string) (n int) {
	for _, t := range p.told {
		if t == what {
			n++
		}
	}
	return n
}

func (p *pool) recalled(n int, after time.Duration) {
	p.note("recall")
	p.owed += n
	p.after = after
	p.pay()
}

func (p *pool) keep(n int) {
	p.note("keep")
	p.owed -= min(n, p.owed)
}

// pay gives back as many owed permits as the pool has.
func (p *pool) pay() {
	for p.obey && p.owed > 0 && len(p.permits) > 0 {
		p.owed--
		p.give()
	}
}

// give gives a permit back. Redis hears of it with the next batch.
func (p *pool) give() {
	if n := len(p.permits); n > 0 {
		permit := p.permits[n-1]
		p.permits = p.permits[:n-1]
		p.s.Give(p.s.now, permit)
	}
}

// ask says how many more permits p could use.
func (p *pool) ask(n int) {
	p.s.tb.Helper()
	p.s.Ask(p.s.now, &p.Pool, n)
	p.s.take()
}

// gets has p ask for n permits, and be granted them.
func (p *pool) gets(n int) {
	p.s.tb.Helper()
	p.ask(n)
	p.s.answer(p.s.batch(), all)
	p.ask(0)
	if p.held != n {
		p.s.tb.Fatalf("bug in the test: the pool holds %d permits, want %d", p.held, n)
	}
}

// returns has p give all permits back, and Redis confirm that.
func (p *pool) returns() {
	p.s.tb.Helper()
	for len(p.permits) > 0 {
		p.give()
	}
	p.s.answer(p.s.batch(), all)
}
