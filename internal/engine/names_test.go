package engine

import (
	"runtime"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
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
