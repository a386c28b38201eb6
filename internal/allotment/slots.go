package allotment

type state uint8

const (
	opening state = iota
	idle
	out
	leaving
	gone
)

// slots counts the slots of a pool by state, and the turns of its callers.
//
// Turns have no names, so the counts alone say which callers have a slot already. Invariants, while
// nobody holds the allotment's lock:
//
//   - n[s] is how many slots are in state s, and fixed how many of the idle ones have the pin
//     Fixed;
//   - turns >= n[out]: each slot that is out has a turn. The rest is on the way to a slot.
type slots struct {
	n       [gone + 1]int
	fixed   int // only their pool can use or end them; see Pin
	turns   int
	returns uint64 // checkouts that ended while a caller may have waited: see explain
}

// move counts a slot of one state in another.
func (s *slots) move(from, to state) {
	s.n[from]--
	s.n[to]++
}

// all is how many slots hold a permit, or the place of one.
func (s *slots) all() int { return s.n[opening] + s.n[idle] + s.n[out] + s.n[leaving] }

// coming is how many callers with a turn have no slot yet, not even one that is opening.
func (s *slots) coming() int { return max(0, s.turns-s.n[out]-s.n[opening]) }

// dials is how many slots callers with a turn are opening, or are about to.
func (s *slots) dials() int { return max(0, s.turns-s.n[out]-s.n[idle]) }

// idleLeft reports whether one more caller would find an idle slot.
func (s *slots) idleLeft() bool { return s.turns-s.n[out] < s.n[idle] }

// tie gives a turn to a slot that is about to be out: that of a caller on the way, or a new one
// where no caller is. The pool then hands the slot out past the queue (pgxpool's AcquireAllIdle),
// and the slot brings a turn of its own, available or not. Such a slot can take the turn of a
// caller who is on the way to another one, which brings its own instead: the sum is the same.
func (s *slots) tie() {
	if s.turns == s.n[out] {
		s.turns++
	}
}

// untie takes back a turn that no slot has. If another slot took it (see tie), there is none.
func (s *slots) untie() {
	if s.turns > s.n[out] {
		s.turns--
	}
}

// endCheckout ends the turn of a slot that is out, and that its caller now moves to another state.
func (s *slots) endCheckout() {
	s.turns--
	s.returns++
}
