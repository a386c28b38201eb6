package engine

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// A critic is a Listener that reports calls that no push may cause.
type critic struct {
	// a heartbeat that a push caused may still be in flight when its test has ended
	wrong atomic.Pointer[string]
}

func (c *critic) complain(format string, args ...any) {
	wrong := fmt.Sprintf(format, args...)
	c.wrong.Store(&wrong)
}

func (c *critic) Granted([]*Permit) { c.complain("granted by a push what was not asked for") }
func (c *critic) Recall(n int, after time.Duration) {
	if n < 1 || after < 0 {
		c.complain("recalled: %d, after %v", n, after)
	}
}
func (c *critic) Promised(n int) { c.complain("promised by a push: %d", n) }
func (*critic) Wanted(bool)      {}
func (*critic) Changed()         {}
func (*critic) Closed()          {}
func (*critic) Lost(*Permit)     {}
func (*critic) Owed() int        { return 0 }
func (*critic) Keep(int)         {}

func (*critic) EndBackends(context.Context, []string) []bool  { return nil }
func (*critic) BackendsGone(context.Context, []string) []bool { return nil }

// No push makes a session hold a permit that it did not ask for, or trust one for longer than a
// lease.
func FuzzPush(f *testing.F) {
	mini := miniredis.RunT(f)
	c := redis.NewClient(&redis.Options{Addr: mini.Addr(), Protocol: 2, DisableIdentity: true})
	f.Cleanup(func() { _ = c.Close() })
	s, err := Open(context.Background(), c, false, filled(Config{Capacity: 3, TTL: time.Hour}))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	told := &critic{}
	pool, err := s.NewPool(told)
	if err != nil {
		f.Fatal(err)
	}
	probe, err := pool.Try(context.Background())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { pool.Give(probe) }) // else Close waits for it
	name := poolName(probe)
	held, err := s.get(context.Background())
	if err != nil {
		f.Fatal(err)
	}
	id, epoch := held.ID, s.core.Epoch()
	for _, seed := range []string{
		"g " + epoch + " 1790000000000 " + id, "g " + epoch + " 9223372036854775807 " + id,
		"g " + epoch + " -9223372036854775808 x", "g " + epoch + " x " + id,
		"g e 5 a", "g", "g " + epoch, "w " + name, "w", "w x y", "b " + epoch + " " + name +
			" 1 0 0", "b " + epoch + " " + name + " 9 3 50", "b e " + name + " 1 0 0",
		"b " + epoch + " " + name, "b " + name + " t", "b x t", "r", "l", "", " ", "\x00", "q x",
		"g " + epoch + " 1 " + id + " " + id + " " + name,
		"f " + id + " 1 2", "f " + id + " 1", "s " + epoch + " " + id + " 1 2 3 4", "s", "h",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		payload = strings.NewReplacer("EPOCH", epoch, "ID", id, "POOL", name).Replace(payload)
		if push, ok := message.ParsePush(payload); ok {
			s.stepAndTell(func(c *core.Core, now time.Duration) { c.Pushed(now, push) })
		}
		if wrong := told.wrong.Swap(nil); wrong != nil {
			t.Error(*wrong)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.core.Held() != 2 || held.Permit.State() != core.Held ||
			probe.Permit.State() != core.Held {
			t.Errorf("%d permits are held, want the two requested", s.core.Held())
		}
		if until := held.TrustedUntil(); until > s.now()+s.cfg.TTL {
			t.Errorf("trusted for %v, a lease is %v", until-s.now(), s.cfg.TTL)
		}
	})
}
