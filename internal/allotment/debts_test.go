package allotment

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Each step of a recall on its way, by name.
func TestDebtsStepByStep(t *testing.T) {
	now := time.Unix(1000, 0)
	later := now.Add(time.Second)
	for name, c := range map[string]struct {
		from, want debts
		do         func(d *debts)
	}{
		"a recall waits for its grant": {
			want: debts{early: 2, after: 5, earlyAt: now},
			do:   func(d *debts) { d.recall(2, 5, now) },
		},
		"recalls that wait together are due with the first": {
			from: debts{early: 2, after: 5, earlyAt: now},
			want: debts{early: 3, after: 5, earlyAt: now},
			do:   func(d *debts) { d.recall(1, 9, now) },
		},
		"a recall without a grant is void": {
			from: debts{early: 2, after: 5, earlyAt: now},
			want: debts{early: 1, after: 9, earlyAt: later},
			do:   func(d *debts) { d.recall(1, 9, later) },
		},
		"a grant is for what nothing else asks for": {
			from: debts{early: 4, earlyAt: now, deferred: []time.Time{later}, owed: 1, leaving: 1},
			want: debts{early: 2, earlyAt: now, deferred: []time.Time{later}, owed: 1, leaving: 1},
			do:   func(d *debts) { d.granted(5, now) },
		},
		"a withdrawal begins with what has come least far, and spares what is leaving": {
			from: debts{early: 1, earlyAt: now, deferred: []time.Time{now, later}, owed: 1, evicting: 1, leaving: 1},
			want: debts{earlyAt: now, deferred: []time.Time{now}, owed: 1, evicting: 1, leaving: 1},
			do:   func(d *debts) { d.withdraw(2, now) },
		},
		"a withdrawal of more than there is": {
			from: debts{deferred: []time.Time{now}, owed: 1, evicting: 1, leaving: 1},
			want: debts{leaving: 1},
			do:   func(d *debts) { d.withdraw(9, now) },
		},
		"deferred recalls are due in the order of their times": {
			from: debts{deferred: []time.Time{now, later}},
			want: debts{deferred: []time.Time{now, now.Add(1), now.Add(1), later}},
			do:   func(d *debts) { d.deferUntil(now.Add(1), 2) },
		},
		"one is due": {
			from: debts{deferred: []time.Time{now, later}},
			want: debts{deferred: []time.Time{later}, owed: 1},
			do: func(d *debts) {
				for d.takeDue(now) {
					d.owe(1, 9)
				}
			},
		},
		"what has left meanwhile has paid": {
			from: debts{owed: 1, leaving: 2},
			want: debts{owed: 2, leaving: 2},
			do:   func(d *debts) { d.owe(5, 4) },
		},
		"no more is owed than is left after a loss": {
			from: debts{owed: 3, evicting: 1},
			want: debts{evicting: 1},
			do:   func(d *debts) { d.owe(0, 1) },
		},
		"an offer pays what is due later": {
			from: debts{deferred: []time.Time{now, later}},
			want: debts{deferred: []time.Time{later}, owed: 1},
			do:   func(d *debts) { d.advance(1, 9) },
		},
		"an idle slot is set aside, and leaves": {
			from: debts{owed: 1},
			want: debts{leaving: 1},
			do:   func(d *debts) { d.setAside(); d.leave(); d.leave() },
		},
		"a returned slot pays": {
			from: debts{owed: 2},
			want: debts{owed: 1, leaving: 1},
			do:   func(d *debts) { d.payByReturn() },
		},
		"a spare permit pays what is owed first": {
			from: debts{deferred: []time.Time{now}, owed: 1},
			want: debts{},
			do:   func(d *debts) { d.paySpare(); d.paySpare(); d.paySpare() },
		},
		"a slot that is gone has paid": {
			from: debts{leaving: 1},
			want: debts{},
			do:   func(d *debts) { d.payByEnd(); d.payByEnd() },
		},
		"a slot that left without a lease pays nothing": {
			from: debts{leaving: 2},
			want: debts{leaving: 1},
			do:   func(d *debts) { d.bound(1) },
		},
	} {
		got := c.from
		got.deferred = slices.Clone(c.from.deferred)
		c.do(&got)
		if got.early != c.want.early || got.after != c.want.after || !got.earlyAt.Equal(c.want.earlyAt) || !slices.Equal(got.deferred, c.want.deferred) ||
			got.owed != c.want.owed || got.evicting != c.want.evicting || got.leaving != c.want.leaving {
			t.Errorf("%s:\n%+v, want\n%+v", name, got, c.want)
		}
	}
}

// The invariants of debts hold in any order of events, and no recall is lost: each was given,
// withdrawn, void, or is pending.
func TestDebtsKeepTheirInvariants(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		var d debts
		now := time.Unix(1000, 0)
		owned, left, recalled, over := r.IntN(8), 0, 0, 0 // left: slots that are leaving
		void := func() {
			over += d.early
			d.forgetVoid(now)
			over -= d.early
		}
		for step := range 40 {
			switch n := 1 + r.IntN(3); r.IntN(9) {
			case 0:
				now = now.Add(time.Duration(r.IntN(30)) * time.Millisecond)
			case 1:
				void()
				recalled += n
				d.recall(n, time.Duration(r.IntN(20))*time.Millisecond, now)
			case 2: // a grant
				owned += n
				void()
				n, after := d.granted(owned, now)
				d.deferUntil(now.Add(after), n)
			case 3:
				for d.takeDue(now) {
					over += d.owed + 1
					d.owe(1, owned)
					over -= d.owed
				}
			case 4:
				void()
				n = min(n, d.early+len(d.deferred)+d.owed+d.evicting)
				d.withdraw(n, now)
				over += n
			case 5: // an idle slot is there, or one is returned
				if d.owed > 0 && owned > left {
					if r.IntN(2) == 0 {
						d.setAside()
					} else {
						d.payByReturn()
						left++
					}
				}
			case 6: // a slot leaves
				if owned > left {
					d.leave()
					left++
				}
			case 7: // a slot is gone
				if left > 0 {
					left--
					if d.leaving > 0 {
						d.payByEnd()
						owned--
						over++
					}
				}
			case 8: // the lease of one that is not leaving is lost
				if owned > left {
					owned--
					over += d.owed
					d.owe(0, owned)
					over -= d.owed
				}
			}
			if d.early < 0 || d.owed < 0 || d.evicting < 0 || d.leaving < 0 ||
				d.leaving > left || d.owed > max(0, owned-d.evicting-d.leaving) {
				t.Fatalf("seed %d, step %d: %+v, %d owned, %d slots leaving", seed, step, d, owned, left)
			}
			if !slices.IsSortedFunc(d.deferred, time.Time.Compare) {
				t.Fatalf("seed %d, step %d: deferred to %v", seed, step, d.deferred)
			}
			if n := d.early + len(d.deferred) + d.pending(); n+over != recalled {
				t.Fatalf("seed %d, step %d: %d recalled, %d over, %d on their way: %+v", seed, step, recalled, over, n, d)
			}
		}
	}
}
