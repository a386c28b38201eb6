package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// TestAway: the promise of each policy while Redis is away, with all processes cut off and with
// one. pg_stat_activity is the witness.

const (
	awayProcesses = 3
	awayCapacity  = 6
	awayShare     = awayCapacity / awayProcesses
	// of the processes that are cut off. Calls to Redis may take a fifth of it, and a busy machine
	// needs that. A process closes its connections a tenth of it before others may open theirs.
	awayTTL = 3 * time.Second
	// of the others: they lose no lease, even if the machine stands still for seconds.
	steadyTTL    = time.Minute
	awayFallback = awayShare + 1
)

// An awayFleet is a fleet of processes at their cap, at even shares. Each process reaches Redis
// over a proxy of its own, which the test can cut.
type awayFleet struct {
	*servers
	t     *testing.T
	name  string
	seen  *ledger
	fleet named
	ways  map[string]*throwaway.Proxy
}

// startAway runs a fleet until its shares are even. The processes that will be cut off for longer
// than their leases have leases of awayTTL, and with the default policy they may see the errors of
// fault "away".
func startAway(t *testing.T, s *servers, j job, cutOff ...string) *awayFleet {
	t.Helper()
	f := &awayFleet{servers: s, t: t, name: t.Name(), seen: s.ledger(t), fleet: make(named),
		ways: make(map[string]*throwaway.Proxy)}
	j.Semaphore, j.Capacity, j.Goroutines, j.Load = f.name, awayCapacity, 2*awayCapacity,
		10*time.Minute
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
		if slices.Contains(cutOff, name) {
			this.TTL = awayTTL
			if !j.KeepOnLoss && j.FallbackConns == 0 {
				this.Fault = "away"
			}
		}
		s.run(t, f.fleet, 1, this)
	}
	f.even(time.Now())
	return f
}

// all returns the names of the processes.
func (f *awayFleet) all() (names []string) {
	for i := range awayProcesses {
		names = append(names, fmt.Sprintf("p%02d", i))
	}
	return names
}

// even waits until the whole capacity is in use, evenly, and every connection has a permit.
func (f *awayFleet) even(from time.Time) time.Time {
	f.t.Helper()
	at := f.seen.await(f.t, from, func(s shares) bool {
		return s.even(awayCapacity, awayProcesses)
	})
	eventually(f.t, time.Minute, func() (bool, string) {
		n := f.redisClient.ZCard(f.t.Context(), "passbuddy-"+f.name).Val()
		return n == awayCapacity, fmt.Sprintf("%d permits are held", n)
	})
	return at
}

// back restores the connections to Redis, and waits until every connection has a permit again.
func (f *awayFleet) back(how func(*throwaway.Proxy), after time.Duration) {
	f.t.Helper()
	began := time.Now()
	for _, way := range f.ways {
		how(way)
	}
	f.t.Logf("even again %v after Redis was back",
		f.even(began.Add(after)).Sub(began).Round(time.Millisecond))
}

// A connection without a permit lives on for a second, and for the operation on it, after Redis is
// back.
const awayCountIn = 1500 * time.Millisecond

// renewed waits until Redis has renewed the leases of all sessions beyond a time.
func (f *awayFleet) renewed(until time.Time) {
	f.t.Helper()
	eventually(f.t, time.Minute, func() (bool, string) {
		n := f.redisClient.ZCount(f.t.Context(), "{passbuddy-"+f.name+"}:sessions",
			fmt.Sprint(until.UnixMilli()), "+inf").Val()
		return n == awayProcesses, fmt.Sprintf("%d sessions of %d have renewed their leases", n,
			awayProcesses)
	})
}

// peak returns the most backends in any sample between two instants.
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

// opensNothing checks that no process has opened a connection without a permit since all were cut
// off. A process may still use a permit that was granted just before, for as long as its lease is
// trusted.
func (f *awayFleet) opensNothing(cut time.Time) {
	f.t.Helper()
	if n := f.seen.connects(cut); n > handful {
		f.t.Errorf("%d connections were opened after the cut", n)
	}
	if n := f.seen.connects(cut.Add(awayTTL * 9 / 10)); n > 0 {
		f.t.Errorf("%d connections were opened after the last trusted lease", n)
	}
}

// stop ends the fleet. No operation may have failed unexpectedly, and nothing may be left.
func (f *awayFleet) stop() {
	f.t.Helper()
	f.fleet.stop(f.t)
	f.nothingLeft(f.t, f.name)
	eventually(f.t, time.Minute, func() (bool, string) {
		n := f.redisClient.ZCard(f.t.Context(), "{passbuddy-"+f.name+"}:sessions").Val()
		return n == 0, fmt.Sprintf("%d sessions left", n)
	})
}

func awayTest(t *testing.T, run func(t *testing.T, s *servers, integration string)) {
	if testing.Short() {
		t.Skip("-short: leases must expire")
	}
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			t.Parallel()
			run(t, startServers(t, 100), integration)
		})
	}
}

// Redis is away for less than a lease: no operation fails, and no process closes a connection.
func TestRedisAwayForLessThanALease(t *testing.T) {
	t.Parallel() // it mostly waits
	awayTest(t, func(t *testing.T, s *servers, integration string) {
		// A lease is trusted for 0.9 of its time after a heartbeat. So from any moment on, it is
		// trusted for at least 0.56 of its time: Redis may be away for 4.5 s, and the rest is for a
		// machine that stands still.
		const ttl, away = 8 * time.Second, 1500 * time.Millisecond
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
			f.renewed(time.Now().Add(ttl))
			// On a busy machine some permits move between the processes, as they do without a
			// fault.
			if n := f.seen.connects(began); n > handful {
				t.Errorf("%s: %d connections were opened, so others were closed", how.name, n)
			}
		}
		f.stop() // This fails if an operation did.
		if n := f.seen.mostAtOnce(); n > awayCapacity {
			t.Errorf("%d backends, capacity %d", n, awayCapacity)
		}
	})
}

// The default policy. A process that is cut off closes its connections before its leases end, and
// the others take its permits over. With all processes cut off no connection is left. The cap holds
// in every sample.
func TestRedisAwayFence(t *testing.T) {
	t.Parallel() // it mostly waits
	awayTest(t, func(t *testing.T, s *servers, integration string) {
		const victim = "p00"
		t.Run("one", func(t *testing.T) {
			f := startAway(t, s, job{Integration: integration, TTL: steadyTTL}, victim)
			cut := time.Now()
			f.ways[victim].Stall()
			over := f.seen.await(t, cut, func(s shares) bool {
				return s[victim] == 0 && s.total() == awayCapacity
			})
			t.Logf("taken over %v after the cut, TTL %v", over.Sub(cut).Round(time.Millisecond),
				awayTTL)
			f.back((*throwaway.Proxy).Resume, 0)
			f.stop()
			if n := f.seen.mostAtOnce(); n > awayCapacity {
				t.Errorf("%d backends, capacity %d", n, awayCapacity)
			}
		})
		t.Run("all", func(t *testing.T) {
			f := startAway(t, s, job{Integration: integration}, "p00", "p01", "p02")
			cut := time.Now()
			for _, way := range f.ways {
				way.Cut()
			}
			gone := f.seen.await(t, cut, func(s shares) bool { return s.total() == 0 })
			t.Logf("all gone %v after the cut, TTL %v", gone.Sub(cut).Round(time.Millisecond),
				awayTTL)
			f.opensNothing(cut)
			f.back((*throwaway.Proxy).Heal, 0)
			f.stop()
			if n := f.seen.mostAtOnce(); n > awayCapacity {
				t.Errorf("%d backends, capacity %d", n, awayCapacity)
			}
		})
	})
}

// KeepOnLoss and FallbackConns: no operation fails in any process, however long Redis is away. The
// fleet exceeds the cap by what the policy declares, and no more.
func TestRedisAwayKeep(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, policy := range []struct {
		name string
		set  func(*job)
		most int  // connections of a process that is cut off
		all  bool // whether each connection that it had lives on
	}{
		{"KeepOnLoss", func(j *job) { j.KeepOnLoss = true }, awayShare, true},
		{"FallbackConns", func(j *job) { j.FallbackConns = awayFallback }, awayFallback, false},
	} {
		t.Run(policy.name, func(t *testing.T) {
			t.Parallel()
			of := func(name string) func(shares) int {
				return func(s shares) int { return s[name] }
			}
			// One process is cut off. The others take its permits over, and it keeps the
			// connections that the policy allows.
			t.Run("one", func(t *testing.T) {
				t.Parallel()
				awayTest(t, func(t *testing.T, s *servers, integration string) {
					const victim = "p00"
					j := job{Integration: integration, TTL: steadyTTL}
					policy.set(&j)
					f := startAway(t, s, j, victim)
					cut := time.Now()
					f.ways[victim].Stall()
					f.seen.await(t, cut, func(s shares) bool {
						return s[victim] == policy.most && s.total() == awayCapacity+policy.most
					})
					time.Sleep(awayTTL / 4)
					now := time.Now()
					if n := f.peak(cut, now, of(victim)); n > policy.most {
						t.Errorf("the process that was cut off had %d connections, want at most %d", n,
							policy.most)
					}
					if n := f.peak(cut, now, shares.total); n > awayCapacity+policy.most {
						t.Errorf("%d backends, want at most %d more than the capacity, %d", n,
							policy.most, awayCapacity)
					}
					if n := f.seen.fewest(victim, cut); n < awayShare {
						t.Errorf("the process that was cut off had only %d connections for a while", n)
					}
					f.back((*throwaway.Proxy).Resume, awayCountIn)
					if n := f.peak(cut, time.Now(), shares.total); n > awayCapacity+policy.most {
						t.Errorf("%d backends when it was back, want at most %d more than the "+
							"capacity, %d", n, policy.most, awayCapacity)
					}
					f.staysWithin()
				})
			})
			t.Run("all", func(t *testing.T) {
				t.Parallel()
				awayTest(t, func(t *testing.T, s *servers, integration string) {
					j := job{Integration: integration}
					policy.set(&j)
					f := startAway(t, s, j, "p00", "p01", "p02")
					cut := time.Now()
					for _, way := range f.ways {
						way.Cut()
					}
					f.seen.await(t, cut.Add(2*awayTTL), func(s shares) bool {
						return s.total() == awayProcesses*policy.most
					})
					now := time.Now()
					for _, name := range f.all() {
						if n := f.peak(cut, now, of(name)); n > policy.most {
							t.Errorf("%s had %d connections, want at most %d", name, n, policy.most)
						}
						if n := f.seen.fewest(name, cut); n < awayShare {
							t.Errorf("%s had only %d connections for a while", name, n)
						}
					}
					if policy.all {
						f.opensNothing(cut)
					}
					f.back((*throwaway.Proxy).Heal, awayCountIn)
					if n := f.peak(
						cut, time.Now(), shares.total); n > awayCapacity+awayProcesses*policy.most {
						t.Errorf("%d backends when Redis was back, want at most %d more than the "+
							"capacity, %d", n, awayProcesses*policy.most, awayCapacity)
					}
					f.staysWithin()
				})
			})
		})
	}
}

// staysWithin checks that the fleet, each of whose connections has a permit, stays within the
// capacity, and ends the fleet.
func (f *awayFleet) staysWithin() {
	f.t.Helper()
	settled := time.Now()
	time.Sleep(awayTTL / 4)
	if n := f.peak(settled, time.Now(), shares.total); n > awayCapacity {
		f.t.Errorf("%d backends after every connection got a permit, capacity %d", n, awayCapacity)
	}
	f.stop()
}
