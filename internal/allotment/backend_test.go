package allotment_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// A process lost the leases of recorded backends while Redis was away. It tells Redis when those
// backends are gone: no other process has to look for them, or to wait for the bound.
func TestALostRecordedPermitIsGivenBack(t *testing.T) {
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
				if err := c.RecordBackend(t.Context(), allotment.Backend{PID: 1, Start: 1}); err != nil {
					t.Fatal(err)
				}
				fl.count(1)
				if !c.CheckOut() {
					t.Fatal("bug in the test: not checked out")
				}
				if what == "spare permit" { // its connection is gone, and a caller keeps its turn for the next
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
					t.Errorf("%d permits are held, or in quarantine, want none", n)
				}
				if what == "spare permit" {
					p.Exit()
				}
			})
		})
	}
}

// A permit covers one connection after another. Before the next one is opened, Redis knows that the
// former is gone. If another session saw that first and freed the permit, the caller gets another
// permit.
func TestARecordIsClearedBeforeTheNextConnection(t *testing.T) {
	for _, what := range []string{"held", "freed"} {
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
				if err := c.RecordBackend(t.Context(), allotment.Backend{PID: 1, Start: 1, Server: 1}); err != nil {
					t.Fatal(err)
				}
				if !c.CheckOut() || !c.Discard() {
					t.Fatal("bug in the test: not discarded")
				}
				c.Gone()
				const key = "{passbuddy-semaphore}:backends"
				ids, _ := fl.redis.HKeys(key)
				if len(ids) != 1 {
					t.Fatalf("bug in the test: recorded %q", ids)
				}
				if what == "freed" {
					fl.redis.HDel(key, ids[0])
					if _, err := fl.redis.ZRem("passbuddy-semaphore", ids[0]); err != nil {
						t.Fatal(err)
					}
				}
				if c, err = p.Open(t.Context()); err != nil {
					t.Fatal(err)
				}
				record := fl.redis.HGet(key, ids[0])
				if what == "held" && !strings.HasPrefix(record, "0 0 0 ") || what == "freed" && record != "" {
					t.Errorf("%q is recorded while a connection is opened", record)
				}
				if n := fl.held(); n != 1 {
					t.Errorf("%d permits are held, want 1", n)
				}
				if err := c.RecordBackend(t.Context(), allotment.Backend{PID: 2, Start: 2, Server: 1}); err != nil {
					t.Error(err)
				}
				c.Gone()
				p.Exit()
				if f := p.Figures(); f.Turns != 0 {
					t.Errorf("%+v", f)
				}
			})
		})
	}
}

// A caller that ends backends overtakes those that wait for a turn.
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
		if gone := p.Allotment.EndBackends(t.Context(), []string{"1 2"}); len(gone) != 1 || !gone[0] {
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
func (e *ender) Abort(*allotment.Slot) {}
func (e *ender) BackendsGone(ctx context.Context, backends []allotment.Backend) []bool {
	return e.EndBackends(ctx, backends)
}
func (e *ender) EndBackends(ctx context.Context, _ []allotment.Backend) []bool {
	e.enter(ctx)
	return []bool{true}
}

// fleetOf returns another pool of the process's session, for the allotment a.
func (p *process) fleetOf(t *testing.T, a *allotment.Allotment) *engine.Pool {
	t.Helper()
	pool, err := p.sem.Engine(engine.Seam{}).NewPool(a)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}
