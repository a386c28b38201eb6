package semaphore

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/passbuddy/passbuddy/internal/bubble"
)

func (w *world) inspector() *Inspector {
	w.T.Helper()
	c, _ := w.Client()
	i, err := NewInspector(c, "", "")
	if err != nil {
		w.T.Fatal(err)
	}
	i.Operator = "ann@desk"
	w.T.Cleanup(func() { _ = c.Close() })
	return i
}

// fill has p ask until it holds n permits.
func (p *pool) fill(n int) {
	for range 20 * n {
		p.Ask(n - len(p.Permits()))
		time.Sleep(50 * time.Millisecond)
	}
}

// An inspector is no session: it changes neither the capacity nor anything that is stored.
func TestAnInspectorNeverJoins(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		if s, err := i.Snapshot(t.Context()); err != nil || s.Held+s.Capacity+len(s.Sessions) > 0 {
			t.Fatalf("a semaphore that nobody has joined: %+v, %v", s, err)
		}
		a := w.join(Config{Capacity: 12, Owner: "a"})
		a.acquire(t)
		synctest.Wait()
		before := w.Redis.Dump()
		s, err := i.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Capacity != 12 || len(s.Sessions) != 1 || s.Held != 1 || s.Sessions[0].Held != 1 {
			t.Errorf("seen: %+v", s)
		}
		if names, err := List(t.Context(), a.client, ""); err != nil ||
			!slices.Equal(names, []string{DefaultName}) {
			t.Errorf("listed: %q, %v", names, err)
		}
		if names, err := List(t.Context(), a.client, "passb*"); err != nil || len(names) > 0 {
			t.Errorf("a prefix is no pattern, but listed: %q, %v", names, err)
		}
		if _, err := i.Events(t.Context()); err != nil {
			t.Error(err)
		}
		if after := w.Redis.Dump(); after != before {
			t.Errorf("reading changed the state from\n%s\nto\n%s", before, after)
		}
	})
}

// A snapshot says which process a session is, and how old its figures are.
func TestASnapshotNamesTheProcess(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.join(Config{Owner: "web", TTL: 6 * time.Second})
		time.Sleep(500 * time.Millisecond)
		s, err := w.inspector().Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		host, _ := os.Hostname()
		got := s.Sessions[0]
		if got.Host != host || got.PID != os.Getpid() || got.Program == "" || got.TTL != 6*time.Second {
			t.Errorf("the process is %+v", got)
		}
		if age := time.Since(got.Started); age < 0 || age > 2*time.Second {
			t.Errorf("started %v ago, want half a second", age)
		}
		if got.Age < 400*time.Millisecond || got.Age > 600*time.Millisecond {
			t.Errorf("the figures are %v old, want half a second", got.Age)
		}
	})
}

// A paused fleet keeps and renews what it holds, and grants nothing, neither at once nor from the
// queue. Its callers learn who paused it. Resuming grants to the queue at once.
func TestPause(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a, b := w.join(Config{Capacity: 2}), w.join(Config{Capacity: 2, MaxAttempts: -1})
		p, q := a.acquire(t), a.acquire(t)
		if err := i.Pause(t.Context(), PauseOptions{Reason: "failover"}); err != nil {
			t.Fatal(err)
		}
		release(t, q)
		waiting := b.later(t.Context())
		time.Sleep(20 * time.Second)
		if waiting.IsDone() {
			t.Fatal("granted although paused")
		}
		if !p.Held() {
			t.Fatal("the pause cost a lease that was held")
		}
		if _, err := a.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Fatalf("TryAcquire: %v", err)
		}
		_, err := a.Acquire(t.Context())
		if !errors.Is(err, ErrCapacity) || !strings.Contains(err.Error(), "ann@desk: failover") {
			t.Fatalf("the error does not say who paused: %v", err)
		}
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Pause == nil || s.Pause.By != "ann@desk" || s.Pause.Reason != "failover" ||
			!s.Pause.Until.IsZero() || s.Pause.Drain {
			t.Fatalf("seen: %+v, %v", s.Pause, err)
		}
		if since := s.At.Sub(s.Pause.Since); since < 20*time.Second || since > 30*time.Second {
			t.Errorf("paused for %v", since)
		}
		if !a.Stats().Paused {
			t.Error("the session does not know that it is paused")
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the waiter was not granted when the fleet resumed: %v", waiting.Err)
		}
	})
}

// A pause with an end ends by itself.
func TestPauseForATime(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 1, MaxAttempts: -1})
		if err := i.Pause(t.Context(), PauseOptions{For: 3 * time.Second}); err != nil {
			t.Fatal(err)
		}
		waiting := a.later(t.Context())
		<-waiting.Done
		if waiting.Err != nil || waiting.Took < 2900*time.Millisecond || waiting.Took > 3600*time.Millisecond {
			t.Fatalf("granted after %v, want 3 s: %v", waiting.Took, waiting.Err)
		}
		time.Sleep(5 * time.Second)
		if s, err := i.Snapshot(t.Context()); err != nil || s.Pause != nil {
			t.Errorf("still paused: %+v, %v", s.Pause, err)
		}
	})
}

// A drain takes back all that pools hold, minima included, and grants nothing until it is resumed.
func TestDrain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a, b := w.join(Config{Capacity: 6, Min: 2}), w.join(Config{Capacity: 6})
		pa, pb := a.pool(t), b.pool(t)
		pa.Obey, pb.Obey = true, true
		pa.fill(3)
		pb.fill(2)
		if len(pa.Permits())+len(pb.Permits()) != 5 {
			t.Fatalf("bug in the test: %d and %d held", len(pa.Permits()), len(pb.Permits()))
		}
		began := time.Now()
		if err := i.Pause(t.Context(), PauseOptions{Drain: true}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the drain took %v", took)
		}
		pa.Ask(1)
		time.Sleep(20 * time.Second)
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Held != 0 || s.Pause == nil || !s.Pause.Drain {
			t.Fatalf("drained, but %d held, paused %+v, %v", s.Held, s.Pause, err)
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(pa.Permits()) != 1 {
			t.Fatal("not granted after the fleet resumed")
		}
	})
}

// A drain that is not reached in time resumes, even if the operator has died meanwhile.
func TestADrainThatIsNotReached(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2, MaxAttempts: -1})
		a.acquire(t)
		began := time.Now()
		err := i.Pause(t.Context(), PauseOptions{Drain: true, Timeout: 2 * time.Second})
		if !errors.Is(err, ErrStillHeld) {
			t.Fatalf("Pause: %v", err)
		}
		if took := time.Since(began); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("it took %v, want 2 s", took)
		}
		if _, err := a.TryAcquire(t.Context()); err != nil {
			t.Fatalf("the fleet did not resume: %v", err)
		}

		a.crash()
		b := w.join(Config{Capacity: 2, MaxAttempts: -1})
		b.acquire(t)
		ctx, kill := context.WithTimeout(t.Context(), time.Second)
		defer kill()
		err = i.Pause(ctx, PauseOptions{Drain: true, Timeout: 10 * time.Second})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Pause: %v", err)
		}
		waiting := b.later(t.Context())
		time.Sleep(5 * time.Second)
		if waiting.IsDone() {
			t.Fatal("granted although paused")
		}
		time.Sleep(12 * time.Second)
		if !waiting.IsDone() || waiting.Err != nil {
			t.Fatalf("the fleet did not resume without its operator: %v", waiting.Err)
		}
	})
}

// Resuming in the middle of a drain takes back the recalls.
func TestResumeWhileDraining(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2})
		p := a.pool(t) // gives nothing back
		p.fill(2)
		draining := bubble.Later(func() (any, error) {
			return nil, i.Pause(t.Context(), PauseOptions{Drain: true, Timeout: time.Minute})
		})
		time.Sleep(time.Second)
		if draining.IsDone() || p.Count("recall") == 0 {
			t.Fatalf("nothing was recalled: %s", p.Told())
		}
		if err := w.inspector().Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if p.Heard("keep") == 0 {
			t.Errorf("the recalls were not taken back: %s", p.Told())
		}
		p.GiveBack()
		p.GiveBack()
		<-draining.Done
	})
}

// A pause outlives Redis's state, as the operator's capacity does.
func TestAPauseOutlivesRedis(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2, MaxAttempts: -1})
		a.acquire(t)
		if err := i.Pause(t.Context(), PauseOptions{Reason: "move"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		w.Redis.FlushAll()
		waiting := a.later(t.Context())
		time.Sleep(20 * time.Second)
		s, err := i.Snapshot(t.Context())
		if err != nil || s.Pause == nil || s.Pause.Reason != "move" || waiting.IsDone() {
			t.Fatalf("paused: %+v, %v; granted: %v", s.Pause, err, waiting.IsDone())
		}
		if err := i.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !waiting.IsDone() {
			t.Fatal("not granted after the fleet resumed")
		}
	})
}

// Evicting a session recalls what its pools hold; those that wait are served first.
func TestEvict(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 3, Owner: "a"})
		p := a.pool(t)
		p.Obey = true
		p.fill(3)
		if len(p.Permits()) != 3 {
			t.Fatalf("bug in the test: %d held", len(p.Permits()))
		}
		s, err := i.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Evict(t.Context(), s.Sessions[0].ID, EvictOptions{}); err != nil {
			t.Fatal(err)
		}
		if n := len(p.Permits()); n != 0 {
			t.Errorf("%d still held", n)
		}
		if err := i.Evict(t.Context(), "nobody", EvictOptions{}); err == nil {
			t.Error("a session that does not exist was evicted")
		}
	})
}

// A pool may give back a permit that it was granted after the eviction, for one that a caller still
// has. The eviction recalls that one again.
func TestEvictRecallsAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 2, Owner: "a"})
		p := a.pool(t)
		p.fill(2)
		busy := p.Permits()[0]
		s, err := i.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		evicted := make(chan error, 1)
		go func() {
			evicted <- i.Evict(t.Context(), s.Sessions[0].ID, EvictOptions{Reason: "why"})
		}()
		for p.Heard("recall") == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		p.GiveBack()
		p.fill(2)
		if len(p.Permits()) != 2 || p.Permits()[0] != busy {
			t.Fatalf("bug in the test: %d held", len(p.Permits()))
		}
		p.GiveBack() // pays for the busy one
		recalls := p.Heard("recall")
		time.Sleep(2 * evictAgain)
		if p.Heard("recall") == recalls {
			t.Fatal("the permit in use is not recalled again")
		}
		p.GiveBack()
		if err := <-evicted; err != nil {
			t.Error(err)
		}
		events, err := i.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range events {
			if e.Kind == EventEvicted {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d entries in the log of one eviction", n)
		}
	})
}

// The end of a drain withdraws all recalls that nobody was promised, an eviction's among them. The
// eviction goes on: it recalls again within a second.
func TestEvictGoesOnAfterADrain(t *testing.T) {
	for _, c := range []struct {
		name  string
		pause PauseOptions
		ends  bool // the pause ends by itself
	}{
		{name: "resumed", pause: PauseOptions{Drain: true}},
		{name: "over", pause: PauseOptions{Drain: true, Timeout: 2 * time.Second}, ends: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				i := w.inspector()
				p := w.join(Config{Capacity: 2, Owner: "a"}).pool(t) // gives back nothing by itself
				p.fill(2)
				s, err := i.Snapshot(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				drained := bubble.Later(func() (any, error) {
					return nil, i.Pause(t.Context(), c.pause)
				})
				evicted := bubble.Later(func() (any, error) {
					opts := EvictOptions{Timeout: time.Minute}
					return nil, i.Evict(t.Context(), s.Sessions[0].ID, opts)
				})
				time.Sleep(500 * time.Millisecond)
				if p.Heard("recall") == 0 || p.Heard("keep") > 0 {
					t.Fatalf("bug in the test: %s", p.Told())
				}
				if c.ends {
					<-drained.Done
				} else if err := i.Resume(t.Context()); err != nil {
					t.Fatal(err)
				}
				recalls := p.Heard("recall")
				if p.Count("keep") == 0 {
					t.Fatalf("bug in the test: the drain's end withdrew nothing: %s", p.Told())
				}
				time.Sleep(evictAgain + 4*drainPoll) // it looks every two of drainPoll
				if p.Heard("recall") == recalls {
					t.Fatalf("the eviction ended with the drain: %s", p.Told())
				}
				p.GiveBack()
				p.GiveBack()
				<-evicted.Done
				if evicted.Err != nil {
					t.Error(evicted.Err)
				}
				<-drained.Done
			})
		})
	}
}

// What an evicted session does not give back stays held, or is revoked by force. Then its holder
// loses it at once, and it is counted until its lease is over: nobody gets it before.
func TestEvictByForce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		a := w.join(Config{Capacity: 1, Owner: "a", TTL: 10 * time.Second})
		b := w.join(Config{Capacity: 1, Owner: "b", TTL: 10 * time.Second, MaxAttempts: -1})
		p := a.acquire(t)
		waiting := b.later(t.Context())
		s, err := i.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		id := s.Sessions[0].ID
		err = i.Evict(t.Context(), id, EvictOptions{Timeout: time.Second})
		if !errors.Is(err, ErrStillHeld) || !p.Held() {
			t.Fatalf("Evict: %v, held: %v", err, p.Held())
		}
		err = i.Evict(t.Context(), id, EvictOptions{Timeout: time.Second, Force: true})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if p.Held() {
			t.Fatal("the holder still trusts a permit that was revoked")
		}
		if waiting.IsDone() {
			t.Fatal("granted while the connection of its last holder may be there")
		}
		if s, err := i.Snapshot(t.Context()); err != nil || s.Held != 1 || s.Quarantined != 1 {
			t.Fatalf("%d held, %d in quarantine, %v; want 1, 1", s.Held, s.Quarantined, err)
		}
		<-waiting.Done
		if waiting.Err != nil || waiting.Took < 5*time.Second || waiting.Took > 13*time.Second {
			t.Errorf("granted after %v, want the rest of a lease: %v", waiting.Took, waiting.Err)
		}
		if s, err := i.Snapshot(t.Context()); err != nil || s.Held != 1 || s.Quarantined != 0 {
			t.Errorf("%d held, %d in quarantine, %v; want 1, 0", s.Held, s.Quarantined, err)
		}
		if _, err := a.TryAcquire(t.Context()); !errors.Is(err, ErrCapacity) {
			t.Errorf("the evicted session is not served any more: %v", err)
		}
	})
}

// The log of changes says what, whom it concerns, and who did it.
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
		time.Sleep(3 * time.Second)
		w.Redis.FlushAll()
		time.Sleep(3 * time.Second)
		events, err := i.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range events {
			got = append(got, strings.TrimRight(string(e.Kind)+" "+e.Owner+" "+e.By+" "+e.Detail, " "))
		}
		// The stream went with the state.
		if want := []string{"state lost"}; !slices.Equal(got, want) {
			t.Errorf("after the loss: %q, want %q", got, want)
		}
	})
}

// The log says this of each change.
func TestEventsInWords(t *testing.T) {
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
			"evicted|a|ann@desk|1 permits.", "revoked|a|ann@desk|1 permits.",
			"reported|a||leases lost: 1",
		}
		if !slices.Equal(got, want) {
			t.Errorf("logged:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// An inspector refuses in words all that it cannot do.
func TestInspectorRefuses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		i := w.inspector()
		for name, err := range map[string]error{
			"capacity": i.SetCapacity(t.Context(), -1),
			"far":      i.SetCapacity(t.Context(), maxCapacity+1),
			"for":      i.Pause(t.Context(), PauseOptions{For: -1}),
			"long":     i.Pause(t.Context(), PauseOptions{For: maxPause + 1}),
			"timeout":  i.Pause(t.Context(), PauseOptions{Timeout: time.Second}),
			"evict":    i.Evict(t.Context(), "x", EvictOptions{Timeout: -1}),
		} {
			if err == nil || !strings.HasPrefix(err.Error(), "semaphore: ") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := NewInspector(nil, "", ""); err == nil {
			t.Error("an inspector without a client")
		}
		c, _ := w.Client()
		defer func() { _ = c.Close() }()
		if _, err := NewInspector(c, "{", ""); err == nil {
			t.Error("a prefix with a brace")
		}
		if _, err := List(t.Context(), c, "{"); err == nil {
			t.Error("a prefix with a brace")
		}
	})
}
