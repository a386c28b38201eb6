package engine

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A pool that is closed, or forgotten without a word, leaves its name to the next one.
func TestNamesArePassedOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 1})
		join := func() *Pool {
			p, err := s.NewPool(&bubble.Listener[*Permit]{})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		is := func(p *Pool, want string) {
			t.Helper()
			if got := p.Name("orders"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		first, second, third := join(), join(), join()
		is(first, "orders")
		is(second, "orders (2)")
		is(third, "orders (3)")
		second.Close()
		is(join(), "orders (2)")
		if got := join().Name("reports"); got != "reports" {
			t.Errorf("%q", got)
		}
		other := w.join(Config{Capacity: 1})
		p, err := other.NewPool(&bubble.Listener[*Permit]{})
		if err != nil {
			t.Fatal(err)
		}
		is(p, "orders") // of another session

		first = nil
		time.Sleep(time.Minute) // it holds nothing, so it leaves the session
		runtime.GC()
		is(join(), "orders")
		runtime.KeepAlive(third)
	})
}

// A reporter is a pool that tells its figures.
type reporter struct {
	bubble.Listener[*Permit]
	name atomic.Value // a string; a heartbeat can come before it
}

func (r *reporter) Report() message.PoolFigures {
	name, _ := r.name.Load().(string)
	return message.PoolFigures{Name: name, Permits: len(r.Permits()), Timeouts: 1}
}

// The session shows every pool that is open, also one that holds and asks for nothing. A pool that
// is closed is shown while it holds something, together with the next one of its name.
func TestAllOpenPoolsAreShown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 5})
		open := func() (*Pool, *reporter) {
			r := &reporter{}
			p, err := s.NewPool(r)
			if err != nil {
				t.Fatal(err)
			}
			r.Return = p.Give
			r.name.Store(p.Name("orders"))
			return p, r
		}
		shows := func(when string, want ...string) {
			t.Helper()
			lines := func(list []message.PoolFigures) (out []string) {
				for _, f := range list {
					out = append(out, fmt.Sprintf("%s: %d, %d", f.Name, f.Permits, f.Timeouts))
				}
				return out
			}
			if got := lines(s.Stats().Pools); !slices.Equal(got, want) {
				t.Errorf("%s, Stats has %q, want %q", when, got, want)
			}
			ids, _ := w.Redis.HKeys(keyBase + "info")
			info := w.Redis.HGet(keyBase+"info", ids[0])
			if got := lines(message.ParseInfo(info).Pools); !slices.Equal(got, want) {
				t.Errorf("%s, Redis has %q, want %q", when, got, want)
			}
		}
		first, held := open()
		second, _ := open()
		time.Sleep(time.Minute) // both hold nothing, so they leave the session
		if n := len(read(s.Session, (*core.Core).Pools)); n != 0 {
			t.Fatalf("bug in the test: %d pools in the session", n)
		}
		shows("idle", "orders: 0, 1", "orders (2): 0, 1")
		first.Ask(2)
		time.Sleep(time.Minute)
		shows("one holds two", "orders: 2, 1", "orders (2): 0, 1")
		second.Close()
		first.Close()
		time.Sleep(time.Minute)
		shows("closed, and two held", "orders: 2, 1")
		next, _ := open()
		time.Sleep(time.Minute)
		shows("with the next of its name", "orders: 2, 2")
		held.GiveBack()
		held.GiveBack()
		time.Sleep(time.Minute)
		shows("given back", "orders: 0, 1")
		next.Close()
		time.Sleep(time.Minute)
		shows("all closed")
		runtime.KeepAlive(first)
		runtime.KeepAlive(second)
	})
}
