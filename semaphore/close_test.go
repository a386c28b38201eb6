package semaphore

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2/server"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// A batch that Redis refuses, because its epoch differs, waits for a heartbeat. Close may come
// before the reply to the heartbeat. Then Close itself removes from Redis the permits that the
// batch was to release.
func TestCloseReleasesWhatWaitsForAHeartbeat(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		// with Min every release needs a script
		cfg := Config{Capacity: 2, Min: 1, TTL: time.Hour, MaxAttempts: -1}
		a := w.join(cfg)
		p := a.acquire(t)
		keys := redisscript.NewKeys("passbuddy-semaphore").All()
		w.Redis.HSet(keys[2], "epoch", "another")
		heartbeats := 0
		w.Answers(t, func(_ *server.Peer, _ string, args ...string) bool {
			for _, arg := range args {
				if strings.Contains(arg, `"owner"`) {
					heartbeats++
					return true // and gives no reply
				}
			}
			return false
		})
		go func() { _ = p.Release(t.Context()) }()
		synctest.Wait()
		if heartbeats == 0 {
			t.Fatal("bug in the test: the release waits for no heartbeat")
		}
		if held, _ := w.Redis.ZMembers(keys[0]); len(held) != 1 {
			t.Fatalf("bug in the test: %q are held", held)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		if held, _ := w.Redis.ZMembers(keys[0]); len(held) != 0 {
			t.Errorf("permits %q stay held for an hour", held)
		}
	})
}

// A closed semaphore says that it is closed, and nothing about Redis.
func TestAClosedSemaphoreSaysSo(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.join(Config{Capacity: 2})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, snapshot := s.Snapshot(t.Context())
		_, acquire := s.TryAcquire(t.Context())
		for what, err := range map[string]error{
			"Snapshot": snapshot, "SetCapacity": s.SetCapacity(t.Context(), 3), "TryAcquire": acquire,
		} {
			if !errors.Is(err, ErrClosed) || errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}
