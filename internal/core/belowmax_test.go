package core

import (
	"errors"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/message"
)

// A caller that waits below Config.Max was never asked for: when its patience ends, that is for want
// of capacity, and says nothing of Redis.
func TestPatienceThatEndsBelowMaxIsNoSilenceOfRedis(t *testing.T) {
	c := New(Config{
		Base: "b", Session: "s", TTL: time.Second, RetryInterval: time.Second, Capacity: 2, Max: 1,
		NewPermit: func() *Permit { return new(Permit) },
	})
	first := &Request{Kind: message.Wait, Permits: []*Permit{c.NewPermit()}}
	second := &Request{Kind: message.Wait, Permits: []*Permit{c.NewPermit()}}
	c.Submit(0, first)
	c.Submit(0, second)
	if err := c.GiveUp(1, second, time.Second); !errors.Is(err, ErrCapacity) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want that the session holds its Max", err)
	}
	if err := c.GiveUp(1, first, time.Second); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want that Redis has not answered", err)
	}
}
