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

// OpenExtra does not dial under a permit whose lease ended before the permit arrived (the process
// was stopped).
func TestOpenExtraOfALostPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{})
		a := b.cn.a
		must(t)(nil, b.db.Ping())
		p := b.fleet.stock[0]
		_ = b.fleet.session.Release(p, func() bool { return true })
		if p.Held() {
			t.Fatal("the permit is held")
		}
		a.Attach(tryFleet{b.fleet, p})
		a.Lost(p) // the loss is reported before OpenExtra has the lock
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

// DB.Close comes while the search for suspects waits. A permit in doubt stays counted for as long
// as promised.
func TestCloseInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, 2, full, Config{})
		out := b.conn(t)
		ctx := b.cn.a.Bounded(context.Background(), b.cn.closing)
		must(t)(b.cn.a.Enter(ctx, true))
		c, err := b.cn.a.OpenWithin(ctx)
		must(t)(c, err)
		if !c.CheckOut() {
			t.Fatal("no turn for the caller")
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
			t.Errorf("the permit of a live backend was free after %v", after)
		}
	})
}

// An idle connection without a permit was due to end, but is in use by now. It goes on until it is
// returned.
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
		b.cn.Abort(slot) // like countInSoon's goroutine, when it runs late
		if _, err := tx.Exec("x"); err != nil {
			t.Errorf("in the transaction: %v", err)
		}
		_ = tx.Rollback()
		_ = b.db.Close()
		time.Sleep(time.Minute)
	})
}
