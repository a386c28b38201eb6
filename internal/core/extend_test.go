package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A process that slept finds the answer to an extension before its watchdog has looked. The lease may be over by
// then, so the caller must not hear that it holds it.
func TestAnExtensionThatIsAnsweredAfterTheTrust(t *testing.T) {
	c := New(Config{
		Session: "000000a0-0001-8010", TTL: time.Second, Margin: time.Second / 10, RetryInterval: time.Second, Capacity: 1,
		NewPermit: func() *Permit { return new(Permit) },
		NewEpoch:  func() string { return "e" },
		Random:    func(time.Duration) time.Duration { return 0 },
	})
	c.CallAnswered(1, c.NextCall(1, nil), message.Renewed{Now: 1000, Epoch: "e", Capacity: 1})
	c.Joined(1)
	p := c.NewPermit()
	c.Submit(2, &Request{Kind: message.Wait, Permits: []*Permit{p}})
	c.BatchAnswered(3, c.NextBatch(2), message.Exchanged{All: true, Now: 1000}, false)
	extension := &Request{Kind: message.Hold, Permits: []*Permit{p}, Extends: true}
	c.Submit(4, extension)
	b := c.NextBatch(4)
	c.BatchAnswered(2*time.Second, b, message.Exchanged{Now: 1000, Granted: []string{p.ID}}, false)
	if ended, err := extension.Settled(); !ended || !errors.Is(err, ErrLost) || p.State() != Lost {
		t.Errorf("ended %v with %v, the permit is in state %d", ended, err, p.State())
	}
}
