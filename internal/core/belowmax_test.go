package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// The core never sends a request that waits below Config.Max. So when its caller's patience ends,
// the reason is a lack of capacity, and says nothing about Redis.
func TestGivingUpBelowMaxIsAtCapacity(t *testing.T) {
	c := New(Config{
		Base: "b", Session: "s", TTL: time.Second, RetryInterval: time.Second, Capacity: 2, Max: 1,
		NewPermit: func() *Permit { return new(Permit) },
	})
	first := &Request{Kind: message.Wait, Permits: []*Permit{c.NewPermit()}}
	second := &Request{Kind: message.Wait, Permits: []*Permit{c.NewPermit()}}
	c.Submit(0, first)
	c.Submit(0, second)
	if err := c.GiveUp(1, second, time.Second); !errors.Is(err, ErrCapacity) || errors.Is(err, ErrUnavailable) {
		t.Errorf("the request below Max ends with %v, want ErrCapacity alone", err)
	}
	if err := c.GiveUp(1, first, time.Second); !errors.Is(err, ErrUnavailable) {
		t.Errorf("the request that was sent ends with %v, want ErrUnavailable", err)
	}
}
