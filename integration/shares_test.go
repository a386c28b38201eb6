package integration

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// named is a fleet of workers that Postgres can tell apart: each has its name as its
// application_name.
type named map[string]*worker

// saturating is the job of a process that could use any number of permits until it is told to end.
func saturating(integration, name string, capacity int) job {
	return job{
		Semaphore: name, Capacity: capacity, Integration: integration,
		// Calls to Redis may take a part of it, and a busy machine needs that.
		TTL:        time.Minute,
		Goroutines: 40, Load: *loadFor + 10*time.Minute, MinQuery: 10 * time.Millisecond,
		MaxQuery: 10 * time.Millisecond,
	}
}

// run adds n workers with job j, and waits until all have joined. It returns when the last one did.
func (s *servers) run(t testing.TB, fleet named, n int, j job) (last time.Time) {
	t.Helper()
	var added []*worker
	for range n {
		name := fmt.Sprintf("p%02d", len(fleet))
		dsn, err := url.Parse(s.postgres.URL())
		if err != nil {
			t.Fatal(err)
		}
		q := dsn.Query()
		q.Set("application_name", name)
		dsn.RawQuery = q.Encode()
		j.Redis, j.Postgres = cmp.Or(j.Redis, s.redis.URL()), dsn.String()
		fleet[name] = start(t, j)
		added = append(added, fleet[name])
	}
	for _, w := range added {
		if at := w.joined(t); at.After(last) {
			last = at
		}
	}
	return last
}

// tell sends a command to all of the fleet.
func (f named) tell(t testing.TB, command string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		f[name].tell(t, command)
	}
}

// stop ends the fleet in good order, and returns the outcome of each worker.
func (f named) stop(t testing.TB) map[string]outcome {
	t.Helper()
	f.tell(t, end)
	outcomes := make(map[string]outcome)
	for name, w := range f {
		outcomes[name] = w.outcome(t)
	}
	return outcomes
}

// shares are the backends of each process at one instant.
type shares map[string]int

func (s shares) total() (n int) {
	for _, held := range s {
		n += held
	}
	return n
}

// even reports whether that many processes hold the whole capacity, none more than one permit ahead
// of another.
func (s shares) even(capacity, processes int) bool {
	if s.total() != capacity || len(s) != processes {
		return false
	}
	held := slices.Collect(maps.Values(s))
	return slices.Max(held)-slices.Min(held) <= 1
}

// A ledger is a witness that also records the process of each backend. Samples are some 5 ms apart.
type ledger struct {
	mu      sync.Mutex
	samples []sample
	opened  map[string]time.Time // when a backend began, by Postgres's clock, which is ours
	err     error
	peak    int
}

type sample struct {
	at     time.Time
	shares shares
}

func (s *servers) ledger(t testing.TB) *ledger {
	t.Helper()
	l := &ledger{opened: make(map[string]time.Time)}
	ctx, cancel := context.WithCancel(context.Background())
	admin, err := s.connectAdmin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer admin.Close(context.Background())
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			at := time.Now()
			rows, err := admin.Query(context.Background(), `
				select application_name, pid::text || backend_start::text, backend_start
				from pg_stat_activity
				where usename = 'passbuddy' and backend_type = 'client backend'`)
			found := make(shares)
			for err == nil && rows.Next() {
				var process, backend string
				var began time.Time
				err = rows.Scan(&process, &backend, &began)
				if process == "" {
					continue // The backend has no application_name yet.
				}
				found[process]++
				l.saw(backend, began)
			}
			if err == nil {
				err = rows.Err()
			}
			l.add(sample{at, found}, err)
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return l
}

func (l *ledger) saw(backend string, began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened[backend] = began
}

func (l *ledger) add(s sample, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples, l.err, l.peak = append(l.samples, s), err, max(l.peak, s.shares.total())
}

// await returns the time of the first sample from then on that satisfies ok. The time limit is a
// bound for an overloaded machine, not a figure.
func (l *ledger) await(t testing.TB, from time.Time, wanted func(shares) bool) time.Time {
	t.Helper()
	const patience = time.Minute
	var found time.Time
	next := 0
	eventually(t, patience, func() (bool, string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.err != nil {
			t.Fatalf("sampling: %v", l.err)
		}
		for ; next < len(l.samples); next++ {
			if s := l.samples[next]; !s.at.Before(from) && wanted(s.shares) {
				found = s.at
				return true, ""
			}
		}
		if len(l.samples) == 0 {
			return false, "no sample"
		}
		return false, fmt.Sprintf("backends: %v", l.samples[len(l.samples)-1].shares)
	})
	return found
}

// connects returns how many backends that were seen began after an instant.
func (l *ledger) connects(after time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.opened {
		if at.After(after) {
			n++
		}
	}
	return n
}

// rests waits for a stretch of time, after an instant, in which the fleet makes at most that many
// connects. It returns the connects of the last stretch. On a busy machine permits move now and
// then, in fits. Permits that never come to rest move in every stretch.
func (l *ledger) rests(from time.Time, stretch time.Duration, most int) (connects int, yes bool) {
	const tries = 8
	for range tries {
		time.Sleep(time.Until(from.Add(stretch)))
		if connects = l.connects(from); connects <= most {
			return connects, true
		}
		from = time.Now()
	}
	return connects, false
}

// since returns the samples after that time.
func (l *ledger) since(after time.Time) (all []shares) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		if s.at.After(after) {
			all = append(all, s.shares)
		}
	}
	return all
}

// mostAtOnce returns the peak of the backends of all processes together.
func (l *ledger) mostAtOnce() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peak
}

// most returns the most backends that a process ever had.
func (l *ledger) most(process string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		n = max(n, s.shares[process])
	}
	return n
}

// fewest returns the fewest backends that a process had in any sample from then on.
func (l *ledger) fewest(process string, from time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := -1
	for _, s := range l.samples {
		if held := s.shares[process]; !s.at.Before(from) && (n < 0 || held < n) {
			n = held
		}
	}
	return n
}
