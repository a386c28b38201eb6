package semaphore

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The log of changes says what, whom it concerns, and who did it. It goes with the state.
func TestEvents(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a, b := w.join(Config{Owner: "a", TTL: time.Second}), w.join(Config{Owner: "b", TTL: time.Second})
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		c := w.join(Config{Owner: "c", TTL: time.Second})
		a.acquire(t)
		c.crash()
		time.Sleep(3 * time.Second)
		for _, step := range []error{
			i.SetCapacity(t.Context(), 7),
			i.Pause(t.Context(), PauseOptions{Reason: "why"}),
			i.Resume(t.Context()),
			i.Resume(t.Context()),
			i.Evict(t.Context(), a.snapshot(t).Sessions[0].ID, EvictOptions{Force: true, Timeout: 1}),
		} {
			if step != nil {
				t.Fatal(step)
			}
		}
		time.Sleep(2 * time.Second)
		events, err := i.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, strings.TrimRight(string(e.Kind)+"|"+e.Owner+"|"+e.By+"|"+e.Detail, " "))
			if age := time.Since(e.At); age < 0 || age > time.Minute {
				t.Errorf("%s: %v ago", e.Kind, age)
			}
		}
		want := []string{
			"joined|a||", "joined|b||", "left|b||", "joined|c||", "expired|c||",
			"capacity||ann@desk|set, 10 -> 7", "paused||ann@desk|why", "resumed||ann@desk|",
			"evicted|a|ann@desk|1 permit.", "revoked|a|ann@desk|1 permit.",
			"reported|a||leases lost: 1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("logged:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		w.Redis.FlushAll()
		time.Sleep(3 * time.Second)
		events, err = i.Events(t.Context())
		if err != nil || len(events) != 1 || events[0].Kind != EventStateLost {
			t.Errorf("after the loss: %+v, %v; want that alone", events, err)
		}
	})
}
