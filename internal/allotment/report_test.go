package allotment_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"
	"github.com/passbuddy/passbuddy/internal/message"
	"github.com/passbuddy/passbuddy/semaphore"
)

// sightings is an observer.
type sightings struct {
	mu   sync.Mutex
	list []semaphore.Observation
}

func (s *sightings) Observe(o semaphore.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, o)
}

// of returns what was seen of that kind.
func (s *sightings) of(kind semaphore.ObservationKind) (list []semaphore.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.Kind == kind {
			list = append(list, o)
		}
	}
	return list
}

// hold takes a turn, and a slot that is out.
func (p *process) hold(ctx context.Context) *allotment.Slot {
	p.fl.t.Helper()
	c, err := p.Enter(ctx, true)
	if err == nil && c == nil {
		if c, err = p.OpenWithin(ctx); err == nil {
			p.fl.count(1)
			if !c.CheckOut() {
				err = errors.New("a new slot was refused")
			}
		}
	}
	if err != nil {
		p.fl.t.Fatal(err)
	}
	return c
}

// release ends what hold began.
func (p *process) release(c *allotment.Slot) {
	if !c.Return(true) {
		p.end(c)
	}
}

func scopes(t *testing.T, f func(t *testing.T, perCheckout bool)) {
	t.Helper()
	t.Run("PerConnection", func(t *testing.T) { f(t, false) })
	t.Run("PerCheckout", func(t *testing.T) { f(t, true) })
}

// counter is a pool with 7 idle connections, one that is being opened, and two that are closed.
type counter struct{ *process }

func (counter) CountConns() (idle, opening, closing int) { return 7, 1, 2 }

func TestOpensAreCounted(t *testing.T) {
	inFleet(t, 1, func(t *testing.T, fl *fleet) {
		seen := new(sightings)
		p := fl.startAs(semaphore.Config{Observer: seen}, allotment.Options{Name: "orders"})
		began := time.Now()
		time.Sleep(3 * time.Second)
		p.CountOpen(began, nil)
		refused := errors.New("connection refused")
		p.CountOpen(began.Add(time.Second), refused)
		p.CountOpen(began.Add(2*time.Second), nil)
		f := p.Report()
		if f.Opened != 2 || f.Failed != 1 || f.OpenTime != 4*time.Second {
			t.Errorf("opened %d in %v, %d failed", f.Opened, f.OpenTime, f.Failed)
		}
		opens := seen.of(semaphore.ObservedOpen)
		if len(opens) != 3 || opens[0].Duration != 3*time.Second || opens[0].Pool != "orders" ||
			opens[0].Err != nil || opens[1].Err != refused || opens[1].Duration != 2*time.Second {
			t.Errorf("observed %+v", opens)
		}
	})
}

// Permits that the fleet asks back, by recalls or in answer to offers, are counted when that is
// heard.
func TestRecallsAreCounted(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		a, b := fl.start(allotment.Options{}), fl.start(allotment.Options{})
		var held []*allotment.Slot
		for range 3 {
			held = append(held, a.hold(t.Context()))
		}
		if n := a.Report().Recalled; n != 0 {
			t.Errorf("%d before anybody asked", n)
		}
		done := make(chan struct{})
		go func() { b.release(b.hold(t.Context())); close(done) }()
		time.Sleep(time.Second)
		if n := a.Report().Recalled; n != 1 {
			t.Errorf("%d recalled, one is wanted", n)
		}
		for _, c := range held {
			a.release(c)
		}
		<-done
		if n := a.Report().Recalled; n != 1 {
			t.Errorf("%d recalled, one was wanted", n)
		}
		a.Promised(2)
		if n := a.Report().Recalled; n != 3 {
			t.Errorf("%d recalled, after two more by an offer", n)
		}
	})
}

// A lost lease is counted, and observed without a lock held.
func TestLossesAreCounted(t *testing.T) {
	inFleet(t, 3, func(t *testing.T, fl *fleet) {
		fl.over = 3
		var p *process
		var lost []message.PoolFigures
		seen := new(sightings)
		p = fl.startAs(semaphore.Config{TTL: time.Second, Observer: observerFunc(
			func(o semaphore.Observation) {
				seen.Observe(o)
				if o.Kind == semaphore.ObservedLoss {
					lost = append(lost, p.Report())
				}
			})}, allotment.Options{Name: "orders"})
		for range 2 {
			p.hold(t.Context())
		}
		fl.redis.SetError("LOADING Redis is away")
		time.Sleep(2 * time.Second)
		fl.redis.SetError("")
		synctest.Wait()
		if f := p.Report(); f.Lost != 2 || f.Permits != 0 {
			t.Errorf("%d lost, %d permits", f.Lost, f.Permits)
		}
		losses := seen.of(semaphore.ObservedLoss)
		if len(losses) != 2 || losses[0].Pool != "orders" || len(lost) != 2 ||
			lost[0].Lost != 1 || lost[0].Permits != 1 {
			t.Errorf("observed %+v, %+v", losses, lost)
		}
		time.Sleep(5 * time.Second)
	})
}

type observerFunc func(semaphore.Observation)

func (f observerFunc) Observe(o semaphore.Observation) { f(o) }

// A caller that is refused while the fleet is paused learns who paused it, and why.
func TestRefusalNamesThePause(t *testing.T) {
	inFleet(t, 2, func(t *testing.T, fl *fleet) {
		p := fl.start(allotment.Options{AcquireTimeout: 5 * time.Second})
		held, out := p.hold(t.Context()), p.hold(t.Context())
		inspector, err := semaphore.NewInspector(p.sem.Client(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		inspector.Operator = "ann@laptop"
		err = inspector.Pause(t.Context(), semaphore.PauseOptions{Reason: "failover"})
		if err != nil {
			t.Fatal(err)
		}
		held.Leave()
		p.end(held)
		time.Sleep(10 * time.Second) // a heartbeat tells
		refused := func(ctx context.Context) {
			t.Helper()
			_, err := p.Enter(ctx, true)
			if !errors.Is(err, semaphore.ErrCapacity) ||
				!strings.Contains(err.Error(), "paused by ann@laptop: failover") ||
				strings.Contains(err.Error(), "came back in the") {
				t.Errorf("refused with: %v", err)
			}
		}
		refused(t.Context())
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		refused(short) // though the capacity is not used up
		if err := inspector.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		p.release(p.hold(t.Context()))
		p.release(out)
	})
}
