package engine

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// lastLooker returns two sessions that hold one of two permits each, and one that holds none. Once
// victim is suspected, only keeper can look.
func lastLooker(t *testing.T, w *world) (victim, keeper, newcomer *fencer) {
	t.Helper()
	cfg, pg := Config{Capacity: 2, TTL: longTTL, Patience: forever}, &postgres{}
	victim, keeper = w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
	victim.open(1)
	keeper.open(1)
	return victim, keeper, w.join(cfg).fencer(t, pg)
}

// The only session that could look has one connection, and would give its permit to the pool that
// waits. It looks first. If the deaf session lives, the look delays the waiter by at most a second.
func TestTheLookComesBeforeTheLastConnectionMoves(t *testing.T) {
	for _, lives := range []bool{false, true} {
		inWorld(t, func(t *testing.T, w *world) {
			victim, keeper, newcomer := lastLooker(t, w)
			if lives {
				victim.s.loseSubscription(t)
			} else {
				victim.s.link.SetCut(true)
			}
			asked := func() int { return keeper.Heard("wanted") + keeper.Heard("recall") }
			before := asked()
			newcomer.Ask(1)
			time.Sleep(700 * time.Millisecond)
			if n := asked() - before; n > 0 {
				t.Errorf("the pool was asked %d times for its only connection, which the look "+
					"needs", n)
			}
			if keeper.looks.Load() == 0 {
				t.Error("the session did not look")
			}
			if !lives {
				victim.close(victim.granted()...)
			}
			time.Sleep(time.Second)
			if n := asked() - before; (n > 0) != lives {
				t.Errorf("other session alive: %v, but it was asked %d times", lives, n)
			}
			if got := newcomer.Heard("granted") > 0; got == lives {
				t.Errorf("other session alive: %v, but newcomer granted its permit: %v", lives, got)
			}
			w.checkCounts(t)
		})
	}
}

// As before, on a slow machine: a look takes longer than the second that it is waited for at least.
// The only connection moves when the look was answered, or when no answer comes.
func TestALookIsWaitedFor(t *testing.T) {
	for name, c := range map[string]struct {
		takes time.Duration
		lives bool
		moves time.Duration // when the other session is asked for its connection, 0: never
	}{
		"gone":        {takes: 3 * time.Second},
		"there":       {takes: 3 * time.Second, lives: true, moves: 3 * time.Second},
		"no answer":   {takes: time.Hour, lives: true, moves: 5 * time.Second},
		"there, soon": {takes: time.Millisecond, lives: true, moves: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				victim, keeper, newcomer := lastLooker(t, w)
				keeper.slow.Store(int64(c.takes))
				if c.lives {
					victim.s.loseSubscription(t)
				} else {
					victim.kill()
				}
				asked := func() int { return keeper.Heard("wanted") + keeper.Heard("recall") }
				before, began := asked(), time.Now()
				newcomer.Ask(1)
				for asked() == before && newcomer.Heard("granted") == 0 {
					if time.Since(began) > longTTL/3 {
						t.Fatal("nothing has happened")
					}
					time.Sleep(10 * time.Millisecond)
				}
				switch took := time.Since(began); {
				case c.moves == 0 && asked() > before:
					t.Errorf("the pool was asked for its only connection after %v, and the look "+
						"takes %v", took, c.takes)
				case c.moves > 0 && (took < c.moves || took > c.moves+time.Second):
					t.Errorf("the connection moves after %v, want %v", took, c.moves)
				}
				keeper.slow.Store(0)
				w.checkCounts(t)
			})
		})
	}
}

// A session that lives has no subscription. Looks go on while one waits, and are answered. The
// holders are told of the waiter at first, and not with each look.
func TestHoldersAreToldOnceInARowOfLooks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		sub := w.Redis.NewSubscriber()
		w.T.Cleanup(sub.Close) // when the sessions are closed, and publish no more
		sub.Psubscribe("*")
		var told atomic.Int32
		go func() {
			for m := range sub.Pmessages() {
				if strings.HasPrefix(m.Message, "w ") {
					told.Add(1)
				}
			}
		}()
		deaf, other, _ := looked(t, w, Config{})
		deaf.s.loseSubscription(t)
		time.Sleep(5 * time.Second)
		first, looks := told.Load(), other.looks.Load()
		if first == 0 {
			t.Error("the holders are not told that one waits")
		}
		time.Sleep(longTTL)
		if n := told.Load() - first; n > 0 {
			t.Errorf("the holders were told %d times in %d looks", n, other.looks.Load()-looks)
		}
	})
}

// The session without a subscription covers no backend any more, while others wait for a look. The
// holders are told then that a pool waits.
func TestHoldersAreToldWhenALookIsOfNoUse(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		cfg := Config{Capacity: 4, TTL: longTTL, Patience: forever}
		pg := &postgres{}
		deaf, keeper := w.join(cfg).fencer(t, pg), w.join(cfg).fencer(t, pg)
		deaf.open(1)
		keeper.open(1)
		keeper.Ask(1)
		time.Sleep(time.Second)
		keeper.Ask(0)
		waiter := w.join(cfg).pool(t)
		waiter.want(1)
		if len(keeper.granted()) != 2 || len(waiter.Permits()) != 1 {
			t.Fatal("bug in the test: not at capacity")
		}
		keeper.slow.Store(int64(time.Hour))
		deaf.s.loseSubscription(t)
		before := keeper.Heard("wanted")
		waiter.Ask(1) // it holds one already, so none is recalled for it at once
		time.Sleep(300 * time.Millisecond)
		if keeper.Heard("wanted") > before {
			t.Fatal("bug in the test: the look is not waited for")
		}
		if err := deaf.ClearBackend(deaf.granted()[0])(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if keeper.Heard("wanted") == before {
			t.Error("the holder is not told that a pool waits")
		}
		keeper.slow.Store(0)
	})
}
