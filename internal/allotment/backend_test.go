package allotment_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The leases of backends that are recorded do not end by themselves. Who loses them, for Redis was away, says when those backends are
// gone; nobody has to look, or to wait for the bound.
func TestWhatIsMarkedAndLostIsGivenBack(t *testing.T) {
	for _, what := range []string{"connection", "spare permit"} {
		t.Run(what, func(t *testing.T) {
			inFleet(t, 1, func(t *testing.T, fl *fleet) {
				p := fl.start(allotment.Options{Fence: true})
				if _, err := p.Enter(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				c, err := p.Open(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Mark(t.Context(), semaphore.Backend{PID: 1, Start: 1}); err != nil {
					t.Fatal(err)
				}
				fl.count(1)
				if !c.CheckOut() {
					t.Fatal("bug in the test: not checked out")
				}
				if what == "spare permit" { // its connection is gone, and a caller keeps his turn for the next
					if !c.Discard() {
						t.Fatal("bug in the test: not discarded")
					}
					fl.count(-1)
					c.Gone()
					if f := p.Figures(); f.Spare != 1 {
						t.Fatalf("bug in the test: %+v", f)
					}
				}
				fl.redis.SetError("away")
				time.Sleep(20 * time.Second)
				if f := p.Figures(); f.Owned != 0 {
					t.Fatalf("bug in the test: nothing lost: %+v", f)
				}
				fl.redis.SetError("")
				time.Sleep(3 * time.Second) // a heartbeat
				if n := fl.held(); n != 0 {
					t.Errorf("%d permits are held, or in quarantine", n)
				}
				if what == "spare permit" {
					p.Exit()
				}
			})
		})
	}
}

// Who ends backends passes those who wait for a turn.
func TestUrgentTurn(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		p := &ender{}
		a := fl.start(allotment.Options{})
		p.Allotment = allotment.New(p, allotment.Options{AcquireTimeout: time.Minute})
		p.Attach(a.fleetOf(t, p.Allotment))
		if _, err := p.Enter(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		var order []string
		done := make(chan string)
		enter := func(name string, ctx context.Context) {
			go func() {
				if _, err := p.Enter(ctx, false); err != nil {
					t.Error(err)
				}
				done <- name
			}()
			synctest.Wait()
		}
		enter("first", t.Context())
		enter("second", t.Context())
		p.enter = func(ctx context.Context) { enter("urgent", ctx) }
		if gone := p.Allotment.EndBackends(t.Context(), []semaphore.Backend{{PID: 1}}); len(gone) != 1 || !gone[0] {
			t.Errorf("gone: %v", gone)
		}
		for range 3 {
			p.Exit()
			order = append(order, <-done)
		}
		p.Exit()
		if order[0] != "urgent" || order[1] != "first" || order[2] != "second" {
			t.Errorf("served %q", order)
		}
	})
}

// ender is a pool that ends backends.
type ender struct {
	*allotment.Allotment
	enter func(ctx context.Context)
}

func (e *ender) Evict() bool           { return false }
func (e *ender) Fence(*allotment.Conn) {}
func (e *ender) EndBackends(ctx context.Context, _ []semaphore.Backend) []bool {
	e.enter(ctx)
	return []bool{true}
}

// fleetOf is a share of the process's session for another allotment.
func (p *process) fleetOf(t *testing.T, a *allotment.Allotment) *semaphore.Share {
	t.Helper()
	share, err := p.sem.NewShare(a)
	if err != nil {
		t.Fatal(err)
	}
	return share
}
