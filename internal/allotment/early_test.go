package allotment_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// The first process to come back after an outage is granted all permits, and is asked for most of
// them before it hears of the grant. If one of those recalls were lost, the permits would stay
// uneven until the next heartbeat.
func TestRecallsThatOvertakeTheirGrant(t *testing.T) {
	const capacity, processes = 20, 5
	inFleet(t, capacity, func(t *testing.T, fl *fleet) {
		var fleet []*process
		for range processes {
			p := &process{fl: fl, sem: fl.start(allotment.Options{}).sem}
			p.Allotment = allotment.New(p, allotment.Options{AcquireTimeout: time.Minute})
			pool, err := p.sem.Engine(engine.Seam{}).NewPool(hearsLate{p.Allotment})
			if err != nil {
				t.Fatal(err)
			}
			p.Attach(pool)
			fleet = append(fleet, p)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		fl.redis.SetError("away")
		for _, p := range fleet {
			p.load(ctx, &wg, capacity, 5*time.Millisecond)
		}
		time.Sleep(time.Second)
		fl.redis.SetError("")
		time.Sleep(500 * time.Millisecond)
		for i, p := range fleet {
			if f := p.Figures(); f.Owned != capacity/processes {
				t.Errorf("process %d owns %d of %d: %+v", i, f.Owned, capacity, f)
			}
		}
		wg.Wait()
	})
}

// hearsLate hears of grants later than of recalls.
type hearsLate struct{ *allotment.Allotment }

func (h hearsLate) Granted(permits []*engine.Permit) {
	time.AfterFunc(30*time.Millisecond, func() { h.Allotment.Granted(permits) })
}
