package passbuddy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/semaphore"
)

type tryFleet struct {
	*fakeFleet
	p *semaphore.Permit
}

func (f tryFleet) Try(context.Context) (*semaphore.Permit, error) { return f.p, nil }

// OpenExtra dials nothing under a permit whose lease ended before it came (the process was stopped).
func TestOpenExtraOfALostPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{})
		a := b.cn.a
		must(t)(nil, b.db.Ping())
		p := b.fleet.stock[0]
		_ = p.Release(context.Background())
		if p.Held() {
			t.Fatal("held")
		}
		a.Attach(tryFleet{b.fleet, p})
		a.Lost(p) // comes before OpenExtra has the lock
		if c := a.OpenExtra(context.Background()); c != nil {
			t.Errorf("a connection may be dialled under a lost permit; bound: usable %v, %+v",
				c.Usable(), a.Figures())
			c.Gone()
		}
		a.Attach(b.fleet)
		_ = b.db.Close()
		time.Sleep(time.Minute)
	})
}

// DB.Close while the search for suspects waits: what is in doubt stays counted for as long as
// promised.
func TestCloseInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{})
		out := b.conn(t)
		ctx := b.cn.a.Bounded(context.Background(), b.cn.closing)
		must(t)(b.cn.a.Enter(ctx, true))
		c, err := b.cn.a.OpenWithin(ctx)
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
		_ = b.db.Close()
		_ = out.Close()
		time.Sleep(time.Minute)
		if after := time.Duration(ended.Load()); after < 14*time.Second {
			t.Errorf("the permit of a backend that lives was free after %v", after)
		}
	})
}

// A connection that lived without a permit, and was to end while it was idle, is in use by now. It
// goes on until it is returned.
func TestUncountedInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{FallbackConns: 2})
		must(t)(nil, b.db.Ping())
		tx, err := b.db.Begin()
		must(t)(tx, err)
		var slot *allotment.Slot
		for _, v := range b.cn.a.AllAttached() {
			slot = v.(*physical).slot
		}
		b.cn.Abort(slot) // as countInSoon's goroutine, which comes late
		if _, err := tx.Exec("x"); err != nil {
			t.Errorf("in the transaction: %v", err)
		}
		_ = tx.Rollback()
		_ = b.db.Close()
		time.Sleep(time.Minute)
	})
}
