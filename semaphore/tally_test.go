package semaphore

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// debtor is a pool that counts what it owes.
type debtor struct{ owed int }

func (*debtor) Granted([]*Permit)               {}
func (d *debtor) Recall(n int, _ time.Duration) { d.owed += n }
func (d *debtor) Keep(n int)                    { d.owed -= min(n, d.owed) }
func (d *debtor) Promised(n int)                { d.owed += n }
func (*debtor) Wanted(bool)                     {}
func (*debtor) Lost(*Permit)                    {}
func (*debtor) Changed()                        {}
func (*debtor) Closed()                         {}
func (d *debtor) Owed() int                     { return d.owed }

// However tallies come, the pool owes what was recalled and not withdrawn.
func TestTalliesInAnyOrder(t *testing.T) {
	tally := func(recalled, withdrawn int64) redisscript.Tally {
		return redisscript.Tally{Recalled: recalled, Withdrawn: withdrawn}
	}
	type said struct {
		epoch   string
		tally   redisscript.Tally
		offered bool // it answers an offer
	}
	push := func(recalled, withdrawn int64) said { return said{"e", tally(recalled, withdrawn), false} }
	for name, c := range map[string]struct {
		said []said
		owes int
	}{
		"told twice": {[]said{push(1, 0), push(1, 0), push(2, 0), push(2, 0)}, 2},
		"late":       {[]said{push(3, 0), push(1, 0), push(2, 0)}, 3},
		"one lost":   {[]said{push(1, 0), push(3, 1)}, 2},
		"withdrawn":  {[]said{push(2, 0), push(2, 2)}, 0},
		"the answer to an offer, before its pushes": {[]said{push(2, 0), {"e", tally(3, 2), true}, push(2, 1), push(2, 2), push(3, 2)}, 1},
		"of a state that is lost":                   {[]said{push(1, 0), {"old", tally(5700, 5600), false}, {"old", tally(99, 0), true}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := &debtor{}
			sh := &Share{s: &Semaphore{epoch: "e"}, sharer: d}
			for _, s := range c.said {
				sh.told(sh.name, s.epoch, s.tally, 0, s.offered)
			}
			if d.owed != c.owes {
				t.Errorf("owes %d, want %d", d.owed, c.owes)
			}
		})
	}
}
