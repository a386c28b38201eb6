package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// Redis away: what each policy promises for it, with all processes cut off and with one. pg_stat_activity is the witness.

const (
	awayProcesses = 3
	awayCapacity  = 6
	awayShare     = awayCapacity / awayProcesses
	awayTTL       = 1500 * time.Millisecond // calls to Redis may take a fifth, and a busy machine needs that
	awayFallback  = awayShare + 1
)

// An awayFleet is processes at their cap, at even shares, each with a way to Redis of its own that can be cut.
type awayFleet struct {
	*servers
	t     *testing.T
	name  string
	seen  *ledger
	fleet named
	ways  map[string]*throwaway.Proxy
}

// startAway runs a fleet until its shares are even. Each of faulty, of which there may be none, may see the faults of "away".
func startAway(t *testing.T, s *servers, j job, faulty ...string) *awayFleet {
	t.Helper()
	f := &awayFleet{servers: s, t: t, name: t.Name(), seen: s.ledger(t), fleet: make(named), ways: make(map[string]*throwaway.Proxy)}
	j.Semaphore, j.Capacity, j.Goroutines, j.Load = f.name, awayCapacity, 2*awayCapacity, 10*time.Minute
	j.MinQuery, j.MaxQuery = 10*time.Millisecond, 20*time.Millisecond
	for i := range awayProcesses {
		way, err := throwaway.StartProxy(s.redis.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = way.Close() })
		name := fmt.Sprintf("p%02d", i)
		f.ways[name] = way
		this := j
		this.Redis = "redis://" + way.Addr()
		if slices.Contains(faulty, name) {
			this.Fault = "away"
		}
		s.run(t, f.fleet, 1, this)
	}
	f.even(time.Now())
	return f
}

// all are the names of the processes.
func (f *awayFleet) all() (names []string) {
	for i := range awayProcesses {
		names = append(names, fmt.Sprintf("p%02d", i))
	}
	return names
}

// even waits until all of the capacity is in use, evenly, and every connection is covered by a permit.
func (f *awayFleet) even(from time.Time) time.Time {
	f.t.Helper()
	at := f.seen.await(f.t, from, func(s shares) bool { return s.even(awayCapacity, awayProcesses) })
	eventually(f.t, 10*time.Second, func() (bool, string) {
		n := f.redisClient.ZCard(f.t.Context(), "passbuddy-"+f.name).Val()
		return n == awayCapacity, fmt.Sprintf("%d permits are held", n)
	})
	return at
}

// back lets Redis be there again, and waits until everything is counted in.
func (f *awayFleet) back(how func(*throwaway.Proxy), after time.Duration) {
	f.t.Helper()
	began := time.Now()
	for _, way := range f.ways {
		how(way)
	}
	f.t.Logf("even again %v after Redis was back", f.even(began.Add(after)).Sub(began).Round(time.Millisecond))
}

// Connections without a permit live on for a second, and an operation, after Redis is back.
const awayCountIn = 1500 * time.Millisecond

// peak is the most backends in all samples between two instants.
func (f *awayFleet) peak(from, to time.Time, of func(shares) int) (n int) {
	f.seen.mu.Lock()
	defer f.seen.mu.Unlock()
	for _, s := range f.seen.samples {
		if !s.at.Before(from) && !s.at.After(to) {
			n = max(n, of(s.shares))
		}
	}
	return n
}

// opensNothing checks that no connection was opened without a permit since all were cut off. A permit that was
// granted just before may still be used, for as long as it is trusted.
func (f *awayFleet) opensNothing(cut time.Time) {
	f.t.Helper()
	if n := f.seen.connects(cut); n > handful {
		f.t.Errorf("%d connections were opened after the cut", n)
	}
	if n := f.seen.connects(cut.Add(awayTTL * 9 / 10)); n > 0 {
		f.t.Errorf("%d connections were opened when no lease could be proven any more", n)
	}
}

// stop ends the fleet, of which no operation may have failed that should not, and nothing may be left.
func (f *awayFleet) stop() map[string]outcome {
	f.t.Helper()
	outcomes := f.fleet.stop(f.t)
	f.nothingLeft(f.t, f.name)
	eventually(f.t, 5*time.Second, func() (bool, string) {
		n := f.redisClient.ZCard(f.t.Context(), "{passbuddy-"+f.name+"}:sessions").Val()
		return n == 0, fmt.Sprintf("%d sessions left", n)
	})
	return outcomes
}

func awayTest(t *testing.T, run func(t *testing.T, s *servers, integration string)) {
	if testing.Short() {
		t.Skip("-short: leases must expire")
	}
	for _, integration := range []string{"pgxpool", "stdlib"} {
		t.Run(integration, func(t *testing.T) {
			t.Parallel()
			run(t, startServers(t, 100), integration)
		})
	}
}

// Away for less than a lease: no operation fails, and no connection is closed for it.
func TestRedisAwayForLessThanALease(t *testing.T) {
	awayTest(t, func(t *testing.T, s *servers, integration string) {
		// From the last heartbeat before a lease is trusted for 0.9 of its time, so for 0.56 at the least from any moment on.
		const ttl, away = 4 * time.Second, 800 * time.Millisecond
		f := startAway(t, s, job{Integration: integration, TTL: ttl})
		for _, how := range []struct {
			name           string
			away, andAgain func(*throwaway.Proxy)
		}{
			{"cut", (*throwaway.Proxy).Cut, (*throwaway.Proxy).Heal},
			{"silent", (*throwaway.Proxy).Stall, (*throwaway.Proxy).Resume},
		} {
			began := time.Now()
			for _, way := range f.ways {
				how.away(way)
			}
			time.Sleep(away)
			for _, way := range f.ways {
				how.andAgain(way)
			}
			time.Sleep(ttl * 3 / 8) // heartbeats
			// On a busy machine some move between the processes, as they always do.
			if n := f.seen.connects(began); n > handful {
				t.Errorf("%s: %d connections were opened, so others were closed", how.name, n)
			}
		}
		f.stop() // which fails if an operation did
		if n := f.seen.mostAtOnce(); n > awayCapacity {
			t.Errorf("%d backends, capacity %d", n, awayCapacity)
		}
	})
}

// The default. One process that is cut off ends its connections before its leases end, and the others take its permits over; with all cut off none
// is left; and the cap holds in every sample.
func TestRedisAwayFence(t *testing.T) {
	awayTest(t, func(t *testing.T, s *servers, integration string) {
		const victim = "p00"
		t.Run("one", func(t *testing.T) {
			f := startAway(t, s, job{Integration: integration, TTL: awayTTL}, victim)
			cut := time.Now()
			f.ways[victim].Stall()
			over := f.seen.await(t, cut, func(s shares) bool { return s[victim] == 0 && s.total() == awayCapacity })
			t.Logf("taken over %v after the cut, TTL %v", over.Sub(cut).Round(time.Millisecond), awayTTL)
			f.back((*throwaway.Proxy).Resume, 0)
			o := f.stop()[victim]
			if o.Expected == 0 {
				t.Error("bug in the test: no operation failed")
			}
			if n := f.seen.mostAtOnce(); n > awayCapacity {
				t.Errorf("%d backends, capacity %d", n, awayCapacity)
			}
		})
		t.Run("all", func(t *testing.T) {
			f := startAway(t, s, job{Integration: integration, TTL: awayTTL}, "p00", "p01", "p02")
			cut := time.Now()
			for _, way := range f.ways {
				way.Cut()
			}
			gone := f.seen.await(t, cut, func(s shares) bool { return s.total() == 0 })
			t.Logf("all gone %v after the cut, TTL %v", gone.Sub(cut).Round(time.Millisecond), awayTTL)
			f.opensNothing(cut)
			f.back((*throwaway.Proxy).Heal, 0)
			f.stop()
			if n := f.seen.mostAtOnce(); n > awayCapacity {
				t.Errorf("%d backends, capacity %d", n, awayCapacity)
			}
		})
	})
}

// KeepOnLoss and FallbackConns: no operation fails anywhere, however long Redis is away, and the cap is exceeded by as much as is declared, no more.
func TestRedisAwayKeep(t *testing.T) {
	for _, policy := range []struct {
		name string
		set  func(*job)
		most int  // connections of a process that is cut off
		all  bool // of those that it had, each lives on
	}{
		{"KeepOnLoss", func(j *job) { j.KeepOnLoss = true }, awayShare, true},
		{"FallbackConns", func(j *job) { j.FallbackConns = awayFallback }, awayFallback, false},
	} {
		t.Run(policy.name, func(t *testing.T) {
			t.Parallel()
			awayTest(t, func(t *testing.T, s *servers, integration string) {
				const victim = "p00"
				j := job{Integration: integration, TTL: awayTTL}
				policy.set(&j)
				f := startAway(t, s, j)

				// One: the others take its permits over, and it keeps what it may.
				cut := time.Now()
				f.ways[victim].Stall()
				of := func(name string) func(shares) int { return func(s shares) int { return s[name] } }
				f.seen.await(t, cut, func(s shares) bool { return s[victim] == policy.most && s.total() == awayCapacity+policy.most })
				time.Sleep(awayTTL / 2)
				now := time.Now()
				if n := f.peak(cut, now, of(victim)); n > policy.most {
					t.Errorf("the one that was cut off had %d connections, want at most %d", n, policy.most)
				}
				if n := f.peak(cut, now, shares.total); n > awayCapacity+policy.most {
					t.Errorf("%d backends, want at most %d more than the capacity, %d", n, policy.most, awayCapacity)
				}
				if n := f.seen.fewest(victim, cut); n < awayShare {
					t.Errorf("the one that was cut off had but %d connections for a while", n)
				}
				f.back((*throwaway.Proxy).Resume, awayCountIn)
				if n := f.peak(cut, time.Now(), shares.total); n > awayCapacity+policy.most {
					t.Errorf("%d backends when it was back, want at most %d more than the capacity, %d", n, policy.most, awayCapacity)
				}

				// All.
				cut = time.Now()
				for _, way := range f.ways {
					way.Cut()
				}
				f.seen.await(t, cut.Add(2*awayTTL), func(s shares) bool { return s.total() == awayProcesses*policy.most })
				now = time.Now()
				for _, name := range f.all() {
					if n := f.peak(cut, now, of(name)); n > policy.most {
						t.Errorf("%s had %d connections, want at most %d", name, n, policy.most)
					}
					if n := f.seen.fewest(name, cut); n < awayShare {
						t.Errorf("%s had but %d connections for a while", name, n)
					}
				}
				if policy.all {
					f.opensNothing(cut)
				}
				f.back((*throwaway.Proxy).Heal, awayCountIn)
				if n := f.peak(cut, time.Now(), shares.total); n > awayCapacity+awayProcesses*policy.most {
					t.Errorf("%d backends when Redis was back, want at most %d more than the capacity, %d", n, awayProcesses*policy.most, awayCapacity)
				}
				settled := time.Now()
				time.Sleep(awayTTL / 2)
				if n := f.peak(settled, time.Now(), shares.total); n > awayCapacity {
					t.Errorf("%d backends after all are counted in, capacity %d", n, awayCapacity)
				}
				f.stop()
			})
		})
	}
}
