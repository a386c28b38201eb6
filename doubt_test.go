package passbuddy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/engine"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

type tryFleet struct {
	*fakeFleet
	p *engine.Permit
}

func (f tryFleet) Try(context.Context) (*engine.Permit, error) { return f.p, nil }

// More dials nothing under a permit whose lease ended before it came (the process was stopped).
func TestMoreOfALostPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		fleet := newFleet(t, 2)
		db, cn := wrapped(t, s, full, fleet, Config{})
		must(t)(nil, db.Ping())
		p := fleet.stock[0]
		_ = p.Release(context.Background())
		if p.Held() {
			t.Fatal("held")
		}
		cn.a.Attach(tryFleet{fleet, p})
		cn.a.Lost(p) // comes before More has the lock
		if c := cn.a.OpenExtra(context.Background()); c != nil {
			t.Errorf("a connection may be dialled under a lost permit; bound: usable %v, %+v", c.Usable(), cn.a.Figures())
			c.Gone()
		}
		cn.a.Attach(fleet)
		_ = db.Close()
		time.Sleep(time.Minute)
	})
}

// DB.Close while the search for suspects waits: what is in doubt stays counted for as long as it is said.
func TestCloseInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s := &server{t: t}
		fleet := newFleet(t, 2)
		db, cn := wrapped(t, s, full, fleet, Config{})
		out, err := db.Conn(ctx)
		must(t)(out, err)
		ctx2 := cn.a.Bounded(ctx, cn.closing)
		slot, err := cn.a.Enter(ctx2, true)
		must(t)(slot, err)
		c, err := cn.a.OpenWithin(ctx2)
		must(t)(c, err)
		if !c.CheckOut() {
			t.Fatal("CheckOut")
		}
		began := time.Now()
		var ended atomic.Int64
		c.Doubt(&allotment.Suspect{PID: 1, Since: began, Ended: func() {
			ended.CompareAndSwap(0, int64(time.Since(began)))
			c.Gone()
		}})
		time.Sleep(50 * time.Millisecond)
		_ = db.Close()
		_ = out.Close()
		time.Sleep(time.Minute)
		if after := time.Duration(ended.Load()); after < 14*time.Second {
			t.Errorf("the permit of a backend that lives was free after %v", after)
		}
	})
}

// A connection that lived without a permit, and was to end while it was idle, is in use by now. It goes
// on until it is returned.
func TestUncountedInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{t: t}
		fleet := newFleet(t, 2)
		db, cn := wrapped(t, s, full, fleet, Config{FallbackConns: 2})
		must(t)(nil, db.Ping())
		tx, err := db.Begin()
		must(t)(tx, err)
		var slot *allotment.Slot
		for _, v := range cn.a.AllAttached() {
			slot = v.(*physical).slot
		}
		cn.Abort(slot) // as countInSoon's goroutine, which comes late
		_, err = tx.Exec("x")
		if err != nil {
			t.Errorf("in the transaction: %v", err)
		}
		_ = tx.Rollback()
		_ = db.Close()
		time.Sleep(time.Minute)
	})
}
