package engine

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/core"
)

func TestCoverOfWhatIsNotHeldAnyMore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		if _, err := w.Redis.ZRem(base, p.ID); err != nil {
			t.Fatal(err)
		}
		if err := f.connect(p); !errors.Is(err, core.ErrLost) {
			t.Errorf("of a permit that Redis does not know: %v, want ErrLost", err)
		}
		if p.Held() || f.Heard("lost") != 1 {
			t.Error("the permit is still held")
		}
		if err := f.connect(p); !errors.Is(err, core.ErrLost) {
			t.Errorf("of a lost permit: %v, want ErrLost", err)
		}
		f.s.link.SetCut(true)
	})
}

// Four connections open at once, and the session records each within its own lease. Records do not
// wait for one another when a reply takes 2 s.
func TestCoversOnASlowRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 4, Patience: forever}, bubble.Always(0))
		f := s.fencer(t, &postgres{})
		f.open(4)
		l.SetDelay(bubble.Always(time.Second))
		var all sync.WaitGroup
		began := time.Now()
		for _, p := range f.granted() {
			all.Go(func() {
				if err := f.connect(p); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		// Each record may need a new connection to Redis first. The session gives up the first
		// records, because replies were fast before.
		if took := time.Since(began); took > 9*time.Second {
			t.Errorf("took %v", took)
		}
		l.SetDelay(bubble.Always(0))
		time.Sleep(5 * time.Second)
		f.end()
	})
}

// Redis hangs, and the lease is lost during the record of a backend. The caller waits no longer
// than that.
func TestARecordEndsWithItsLease(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, l := w.slowJoin(Config{Capacity: 1}, bubble.Always(0))
		f := s.fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		l.Silence(true)
		time.Sleep(2500 * time.Millisecond)
		lost := make(chan time.Time, 1)
		go func() { <-p.Lost(); lost <- time.Now() }()
		if err := f.connect(p); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
		// record checks the lease this often
		if late := time.Since(<-lost); late > defaultTTL/4+time.Millisecond {
			t.Errorf("record waited for %v after the loss", late)
		}
		l.Silence(false)
	})
}

func TestCoverWithoutRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		f.s.link.SetCut(true)
		if err := f.connect(f.granted()[0]); !errors.Is(err, core.ErrUnavailable) {
			t.Errorf("%v, want ErrUnavailable", err)
		}
	})
}

// A new connection survives a lost reply, and an outage of Redis that is shorter than a lease.
func TestCoverOutlastsAnOutage(t *testing.T) {
	for name, away := range map[string]func(*bubble.Link, bool){
		"cut off": (*bubble.Link).SetCut, "unheard": (*bubble.Link).SetDeaf,
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
				f.open(1)
				away(f.s.link, true)
				time.AfterFunc(2*time.Second, func() { away(f.s.link, false) })
				if err := f.connect(f.granted()[0]); err != nil {
					t.Error(err)
				}
				if w.recorded(f.granted()[0]) == "" {
					t.Error("not recorded")
				}
				w.reckoned(t)
			})
		})
	}
}

// The record of a closed connection arrives after the record of the next connection under the same
// permit.
func TestCoverIsOvertaken(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		first := f.RecordBackend(p, "101 2 0")
		second := f.RecordBackend(p, "102 1 0") // the server's clock stepped back
		recorded := func(want string) {
			t.Helper()
			if got := w.recorded(p); !strings.HasPrefix(got, want+" ") {
				t.Errorf("%q is recorded, want %q", got, want)
			}
		}
		for _, record := range []func(context.Context) error{second, first} {
			if err := record(t.Context()); err != nil {
				t.Fatal(err)
			}
			recorded("102 1")
		}
		w.Redis.Del(keyBase + "backends")
		if err := first(t.Context()); err != nil {
			t.Fatal(err)
		}
		recorded("101 2")
		time.Sleep(2 * time.Second) // a heartbeat
		recorded("102 1")

		// The permit is released meanwhile.
		third := f.RecordBackend(p, "103 3 0")
		f.end()
		synctest.Wait()
		if err := third(t.Context()); !errors.Is(err, core.ErrLost) {
			t.Errorf("of a released permit: %v, want ErrLost", err)
		}
		w.reckoned(t)
	})
}

// A caller that gives up a slow request does not disturb the callers that connect.
func TestCoverOutlivesACallerThatGivesUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		f := s.fencer(t, &postgres{})
		f.open(1)
		p := f.granted()[0]
		s.link.SetDeaf(true)
		outcome := make(chan error, 1)
		go func() { outcome <- f.connect(p) }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := s.try(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("bug in the test: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
		s.link.SetDeaf(false)
		if err := <-outcome; err != nil {
			t.Error(err)
		}
	})
}

// A session that finds Redis's state lost during a record re-asserts the permit first.
func TestCoverFindsTheStateLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := w.join(Config{Capacity: 2}).fencer(t, &postgres{})
		f.open(1)
		w.Redis.FlushAll()
		if err := f.connect(f.granted()[0]); err != nil {
			t.Fatal(err)
		}
		if !f.granted()[0].Held() || f.s.state(t).Held != 1 {
			t.Error("not held any more")
		}
		w.reckoned(t)
	})
}
