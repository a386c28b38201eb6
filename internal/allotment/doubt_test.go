package allotment_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

// losing is a process whose network loses connections.
type losing struct {
	*process
	down   error         // why connects fail
	unable error         // why it cannot ask
	spares bool          // the server does not end what it is asked to
	asked  [][]uint32    // which pids, each time
	think  time.Duration // how long the server takes

	conns []*allotment.Slot // checked out, by pid
}

var _ allotment.SuspectEnder = (*losing)(nil)

func (fl *fleet) startLosing() *losing {
	fl.t.Helper()
	return fl.startLosingAs(allotment.Options{AcquireTimeout: time.Minute})
}

func (fl *fleet) startLosingAs(opts allotment.Options) *losing {
	fl.t.Helper()
	p := fl.start(allotment.Options{})
	l := &losing{process: &process{fl: fl, sem: p.sem}, think: time.Millisecond}
	l.Allotment = allotment.New(l, opts)
	l.Attach(p.fleetOf(fl.t, l.Allotment))
	return l
}

// Abort does nothing where the network has lost the connection: lose follows.
func (l *losing) Abort(c *allotment.Slot) {
	if l.unable == nil {
		l.process.Abort(c)
	}
}

// open checks out n more connections.
func (l *losing) open(n int) {
	l.fl.t.Helper()
	for range n {
		c, err := l.checkOut(l.fl.t.Context())
		if err != nil {
			l.fl.t.Fatal(err)
		}
		l.conns = append(l.conns, c)
	}
}

func (l *losing) checkOut(ctx context.Context) (*allotment.Slot, error) {
	c, err := l.Enter(ctx, true)
	if c != nil || err != nil {
		return c, err
	}
	if c, err = l.Open(ctx); err != nil {
		l.Exit()
		return nil, err
	}
	if l.down != nil {
		c.Gone()
		l.Exit()
		return nil, l.down
	}
	l.fl.count(1)
	time.Sleep(l.fl.connect)
	if !c.CheckOut() {
		l.fl.t.Error("a new connection was refused")
	}
	return c, nil
}

// lose puts the connection of that pid in doubt. Its backend lives on.
func (l *losing) lose(pid int) {
	c := l.conns[pid]
	c.Doubt(&allotment.Suspect{PID: uint32(pid), Ended: c.Gone})
}

func (l *losing) EndSuspects(ctx context.Context, ask func(allotment.EndFunc)) error {
	if l.unable != nil {
		return l.unable
	}
	c, err := l.checkOut(ctx)
	if err != nil {
		return err
	}
	ask(func(_ context.Context, suspects []*allotment.Suspect) (gone []bool, err error) {
		var pids []uint32
		for _, s := range suspects {
			pids = append(pids, s.PID)
			gone = append(gone, !l.spares)
		}
		time.Sleep(l.think)
		l.asked = append(l.asked, pids)
		if !l.spares {
			l.fl.count(-len(pids))
		}
		return gone, nil
	})
	if !c.Return(true) {
		l.end(c)
	}
	return nil
}

// served has n callers at once use connections, and returns how long that took.
func (l *losing) served(n int) time.Duration {
	began := time.Now()
	var callers sync.WaitGroup
	for range n {
		callers.Go(func() {
			c, err := l.checkOut(l.fl.t.Context())
			if err != nil {
				l.fl.t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
			if !c.Return(true) {
				l.end(c)
			}
		})
	}
	callers.Wait()
	return time.Since(began)
}

// With Fence a lost lease stays in quarantine while its backend is in doubt, whatever frees its
// place in the pool. The permit is free for others only once the backend was seen gone.
func TestALostLeaseInDoubtStaysInQuarantine(t *testing.T) {
	for _, seen := range []bool{false, true} {
		inFleet(t, 1, func(t *testing.T, fl *fleet) {
			p := fl.startLosingAs(allotment.Options{AcquireTimeout: time.Minute, Fence: true})
			p.open(1)
			if err := p.conns[0].RecordBackend(t.Context(), allotment.Backend{PID: 1, Start: 1, Server: 1}); err != nil {
				t.Fatal(err)
			}
			p.unable = errors.New("the server is down, it seems")
			fl.redis.SetError("LOADING Redis is away")
			time.Sleep(4900 * time.Millisecond) // it is lost
			p.lose(0)
			if seen {
				p.conns[0].Gone()
			} else {
				synctest.Wait()
				time.Sleep(2 * time.Second)
			}
			fl.redis.SetError("")
			time.Sleep(4 * time.Second) // less than a quarantine
			if quarantined := fl.held() == 1; quarantined == seen {
				t.Errorf("its backend was seen gone: %v; its permit is in quarantine: %v", seen, quarantined)
			}
			time.Sleep(time.Minute)
		})
	}
}

// All permits are in doubt. One is lent for the query that ends the backends, and no other
// connection is opened before the answer.
func TestAllInDoubt(t *testing.T) {
	inFleet(t, 4, func(t *testing.T, fl *fleet) {
		fl.over = 1
		p := fl.startLosing()
		p.open(4)
		p.think = 50 * time.Millisecond
		for pid := range 4 {
			p.lose(pid)
		}
		if took := p.served(4); took > time.Second {
			t.Errorf("served after %v, want at most 1s", took)
		}
		if now, _, _ := fl.witness(); now > 4 || len(p.asked) != 1 || len(p.asked[0]) != 4 {
			t.Errorf("%d backends, asked %v", now, p.asked)
		}
		if f := p.Figures(); f.Leaving != 0 {
			t.Errorf("%+v", f)
		}
	})
}

// A caller with a turn, whose own connection is one of those in doubt, does not take the lent
// permit.
func TestAllInDoubtAndAnOpenerWaits(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		fl.over = 1
		p := fl.startLosing()
		p.open(3)
		if !p.conns[0].Discard() { // the turn stays with the caller
			t.Fatal("bug in the test: not discarded")
		}
		for pid := range 3 {
			p.lose(pid)
		}
		opened := make(chan error)
		go func() {
			c, err := p.Open(t.Context())
			if err == nil {
				fl.count(1)
				time.Sleep(10 * time.Second) // in use for long
				c.Leave()
				p.end(c)
				p.Exit()
			}
			opened <- err
		}()
		synctest.Wait()
		if took := p.served(2); took > time.Second {
			t.Errorf("served after %v, asked %v", took, p.asked)
		}
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
}

// Another process waits for the permit of a connection that is in doubt. The pool that lends that
// permit, to ask for the backend, still owes it.
func TestALentPermitIsStillOwed(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		fl.over = 1
		p, other := fl.startLosing(), fl.start(allotment.Options{})
		p.open(1)
		served := make(chan time.Duration)
		began := time.Now()
		go func() {
			if err := other.use(t.Context(), 0); err != nil {
				t.Error(err)
			}
			served <- time.Since(began)
		}()
		time.Sleep(100 * time.Millisecond)
		if p.conns[0].Return(true) {
			t.Fatal("bug in the test: the permit was not recalled")
		}
		p.lose(0)
		if took := <-served; took > 500*time.Millisecond {
			t.Errorf("the other process was served after %v, want at most 500ms", took)
		}
		if len(p.asked) != 1 {
			t.Errorf("asked %v: no permit was lent", p.asked)
		}
	})
}

// While another connection serves, the pool lends no permit.
func TestSomeInDoubt(t *testing.T) {
	inFleet(t, 4, func(t *testing.T, fl *fleet) {
		p := fl.startLosing()
		p.open(4)
		if !p.conns[3].Return(true) {
			t.Fatal("bug in the test: no connection is idle")
		}
		for pid := range 3 {
			p.lose(pid)
		}
		if took := p.served(4); took > 100*time.Millisecond {
			t.Errorf("served after %v, want at most 100ms", took)
		}
	})
}

// Where the server does not end a backend, its permit is counted until doubtTimeout has passed. The
// lent permit is the exception.
func TestDoubtIsBounded(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		fl.over = 3
		p := fl.startLosing()
		p.open(3)
		p.spares = true
		for pid := range 3 {
			p.lose(pid)
		}
		time.Sleep(14 * time.Second)
		if f := p.Figures(); f.Leaving != 2 {
			t.Errorf("after 14s: %+v", f)
		}
		time.Sleep(2 * time.Second)
		if f := p.Figures(); f.Leaving != 0 {
			t.Errorf("after 16s: %+v", f)
		}
		if took := p.served(3); took > time.Second {
			t.Errorf("served after %v, want at most 1s", took)
		}
	})
}

// While the server cannot be reached, callers fail with that error and do not wait. The pool asks
// again as soon as a connection succeeds.
func TestDoubtAndServerDown(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		fl.over = 3
		p := fl.startLosing()
		p.open(3)
		p.down = errors.New("connection refused")
		for pid := range 3 {
			p.lose(pid)
		}
		time.Sleep(200 * time.Millisecond) // one is lent meanwhile
		for range 3 {
			if _, err := p.checkOut(t.Context()); err != p.down {
				t.Errorf("%v, want %v", err, p.down)
			}
		}
		p.down = nil
		p.served(1)
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		if len(p.asked) != 1 || len(p.asked[0]) != 3 {
			t.Errorf("asked %v", p.asked)
		}
		if now, _, _ := fl.witness(); now > 3 {
			t.Errorf("%d backends, want at most 3", now)
		}
	})
}

// The server's end shows at the socket after all: the pool does not ask for a backend that is gone.
func TestDoubtThatEnds(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		p := fl.startLosing()
		p.open(2)
		p.lose(0)
		synctest.Wait()
		fl.count(-1)
		p.conns[0].Gone()
		if took := p.served(1); took > 50*time.Millisecond {
			t.Errorf("served after %v, want at most 50ms", took)
		}
		p.conns[1].Return(true)
		time.Sleep(time.Minute)
		for _, pids := range p.asked {
			if len(pids) > 0 {
				t.Errorf("asked for %v", p.asked)
			}
		}
	})
}
