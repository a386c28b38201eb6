//go:build unix

package integration

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// This file makes the schedule of a chaos run, from its seed alone. The findings of a run do not
// change its schedule, so the same seed repeats it. How many steps fit into a run depends on how
// soon the fleet recovers.

// A step is a fault and a calm after it.
type step struct {
	n       int
	kind    *kind
	length  time.Duration // of the fault
	process int           // the place that the fault hits; or -1: all
	way     int           // the variant, where the fault has several
	amount  int           // of backends, or of whatever the fault counts
	rider   string        // the second fault that starts half way through; or ""
	riding  int           // the place that the rider hits
	calm    time.Duration
}

func (s step) String() string {
	whom := "all"
	if s.process >= 0 {
		whom = fmt.Sprintf("p%d", s.process)
	}
	text := fmt.Sprintf("%3d %-28s for %-6v %-3s way %d amount %2d", s.n, s.kind.name,
		s.length.Round(time.Millisecond), whom, s.way, s.amount)
	if s.rider != "" {
		text += fmt.Sprintf(" and %s p%d", s.rider, s.riding)
	}
	return text + fmt.Sprintf(", calm for %v", s.calm.Round(time.Millisecond))
}

// A kind is one kind of fault.
type kind struct {
	name     string
	from, to time.Duration // how long it lasts
	rides    bool          // another fault may start meanwhile
	// loses Redis's state: the run asserts the promises for the time after that
	forgets bool
	do      func(r *chaos, s step)
}

// riders are short faults that leave no consequence to excuse.
var riders = []string{"kill", "terminate", "SCRIPT FLUSH", "cut subscribers"}

// schedule deals kinds like cards: each comes once before any comes again.
type schedule struct {
	r         *rand.Rand
	processes int
	kinds     []*kind
	deck      []*kind
	n         int
}

func newSchedule(seed uint64, processes int, kinds []*kind) *schedule {
	return &schedule{r: rand.New(rand.NewPCG(seed, 1)), processes: processes, kinds: kinds}
}

func (s *schedule) next() step {
	if len(s.deck) == 0 {
		s.deck = append(s.deck, s.kinds...)
		s.r.Shuffle(len(s.deck), func(i, j int) { s.deck[i], s.deck[j] = s.deck[j], s.deck[i] })
	}
	k := s.deck[0]
	s.deck = s.deck[1:]
	s.n++
	st := step{
		n: s.n, kind: k, length: k.from + time.Duration(s.r.Int64N(int64(k.to-k.from)+1)),
		process: s.r.IntN(s.processes), way: s.r.IntN(60), amount: 1 + s.r.IntN(10),
		calm: 1500*time.Millisecond + time.Duration(s.r.Int64N(int64(time.Second))),
	}
	// The rider is always drawn. So a kind without one does not shift the draws after it.
	rider, riding, rides := riders[s.r.IntN(len(riders))], s.r.IntN(s.processes), s.r.IntN(3) == 0
	if rides && k.rides {
		st.rider, st.riding = rider, riding
	}
	return st
}
