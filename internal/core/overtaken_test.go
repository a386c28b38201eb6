package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A process that slept finds the answer to an extension before its watchdog has checked the lease.
// The lease may be over by then, so the caller must not hear that it holds the permit.
func TestAnExtensionThatIsAnsweredAfterTheTrust(t *testing.T) {
	c := joinedCore()
	p := c.NewPermit()
	c.Submit(2, &Request{Kind: message.Wait, Permits: []*Permit{p}})
	c.BatchAnswered(3, c.NextBatch(2), message.Exchanged{All: true, Now: 1000}, false)
	extension := &Request{Kind: message.Hold, Permits: []*Permit{p}, Extends: true}
	c.Submit(4, extension)
	b := c.NextBatch(4)
	c.BatchAnswered(2*time.Second, b, message.Exchanged{Now: 1000, Granted: []string{p.ID}}, false)
	if ended, err := extension.Settled(); !ended || !errors.Is(err, ErrLost) || p.State() != Lost {
		t.Errorf("the extension ended: %v, with %v; the permit is in state %d; want ErrLost",
			ended, err, p.State())
	}
}

// joinedCore is a session that has joined.
func joinedCore() *Core {
	c := New(Config{
		Session: "000000a0-0001-8010", TTL: time.Second, Margin: time.Second / 10, RetryInterval: time.Second, Capacity: 1,
		NewPermit: func() *Permit { return new(Permit) },
		NewEpoch:  func() string { return "e" },
		Random:    func(time.Duration) time.Duration { return 0 },
	})
	c.CallAnswered(1, c.NextCall(1, nil), message.Renewed{Now: 1000, Epoch: "e", Capacity: 1})
	c.Joined(1)
	return c
}

// Redis has forgotten what it recalled, because the session was away. It executes the later of two
// calls first. The answer to that call comes last, and must not undo the recalls that the pool has
// heard since.
func TestARecallIsHeardOnceThoughCallsOvertake(t *testing.T) {
	c, p := joinedCore(), new(Pool)
	c.Join(p)
	c.Stay(p, true)
	hear := func() (n int) {
		for _, e := range c.Take().Events {
			switch e.Kind {
			case Told:
				n += c.Hear(e)
			case Forget:
				c.HearAnew(e)
			}
		}
		return n
	}
	push := func(recalled int64) message.Push {
		return message.Push{Kind: message.PushRecall, Epoch: "e", Pool: p.name, Tally: message.Tally{Recalled: recalled}}
	}
	answer := func(k *Call, recalled int64) {
		c.CallAnswered(20, k, message.Renewed{Now: 1000, Epoch: "e", Capacity: 1, Recalls: []message.Tally{{Recalled: recalled}}})
	}
	c.Pushed(10, push(3))
	if n := hear(); n != 3 {
		t.Fatalf("%d recalls are new, want 3", n)
	}
	first, second := c.NextCall(11, nil), c.NextCall(12, nil)
	answer(first, 1)
	hear()
	c.Pushed(21, push(3))
	if n := hear(); n != 2 {
		t.Errorf("%d recalls are new, want 2", n)
	}
	answer(second, 0)
	hear()
	c.Pushed(22, push(3))
	if n := hear(); n != 0 {
		t.Errorf("the pool hears of %d recalls twice", n)
	}
}
