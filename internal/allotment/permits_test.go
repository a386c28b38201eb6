package allotment

import (
	"slices"
	"testing"

	"github.com/passbuddy/passbuddy/internal/engine"
)

func TestPermitsStepByStep(t *testing.T) {
	p, q := new(engine.Permit), new(engine.Permit)
	check := func(ps *permits, uncounted, spares int, spare ...*engine.Permit) {
		t.Helper()
		if !slices.Equal(ps.spare, spare) || ps.uncounted != uncounted || ps.spares() != spares {
			t.Errorf("%v spare, %d of %d without a grant; want %v, %d of %d",
				ps.spare, ps.uncounted, ps.spares(), spare, uncounted, spares)
		}
	}
	var ps permits
	ps.add(p)
	ps.uncounted++
	ps.add(nil)
	check(&ps, 1, 2, p, nil)
	if !ps.countIn(q) || ps.countIn(q) {
		t.Error("one spare permit had to be counted in, once")
	}
	check(&ps, 0, 2, p, q)
	if !ps.remove(p) || ps.remove(p) {
		t.Error("a spare permit had to be removed, once")
	}
	if ps.take() != q {
		t.Error("the newest was not taken")
	}
	ps.lent = q
	check(&ps, 0, 1)
	ps.returnLent()
	ps.returnLent()
	check(&ps, 0, 1, q)
}
