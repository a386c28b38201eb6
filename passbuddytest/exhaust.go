package passbuddytest

import (
	"context"
	"log/slog"
	"sync"
	"testing"
)

// Exhaust has another process take all permits, and returns a function that gives them back. Then
// the fleet is at capacity: an Acquire of the code under test waits. The other process queues like
// any: it is granted what is free, and what is recalled from idle connections. The permits that
// Config.Min keeps for sessions are left to these. If a caller of the code under test goes on to
// hold a permit, Exhaust ends the test.
//
// The permits are given back at the end of the test t, if release was not called by then. To call
// it twice does nothing.
func (f *Fleet) Exhaust(t testing.TB) (release func()) {
	t.Helper()
	f.here(t, "Exhaust")
	ctx, cancel := context.WithTimeout(context.Background(), f.patience())
	defer cancel()
	cfg := f.cfg
	cfg.Owner, cfg.Min, cfg.Max, cfg.MaxWaiters, cfg.MaxAttempts = "Exhaust", 0, 0, 0, -1
	cfg.Observer, cfg.Logger = nil, slog.New(slog.DiscardHandler)
	sem, end, err := f.open(ctx, cfg)
	if err != nil {
		t.Fatalf("passbuddytest: Exhaust: %v", err)
	}
	snapshot, err := f.inspector.Snapshot(ctx)
	wanted := snapshot.Capacity
	for _, s := range snapshot.Sessions {
		wanted -= s.Min
	}
	held := 0
	for err == nil && held < wanted {
		const together = 500 // requests in the queue
		var got int
		got, err = acquire(min(wanted-held, together), func() error {
			_, err := sem.Acquire(ctx)
			return err
		})
		held += got
	}
	if err != nil {
		state := f.state()
		_ = end()
		t.Fatalf("passbuddytest: Exhaust: granted %d of %d permits, others keep the rest: "+
			"release them before\n%v\n%s", held, wanted, err, state)
	}
	release = sync.OnceFunc(func() {
		if err := end(); err != nil {
			t.Errorf("passbuddytest: release of Exhaust: %v", err)
		}
	})
	t.Cleanup(release)
	return release
}

// acquire calls one n times at once. It returns how many succeeded, and why the others did not.
func acquire(n int, one func() error) (got int, err error) {
	results := make(chan error, n)
	var group sync.WaitGroup
	for range n {
		group.Go(func() { results <- one() })
	}
	group.Wait()
	close(results)
	for failure := range results {
		if failure == nil {
			got++
		} else {
			err = failure
		}
	}
	return got, err
}
