//go:build unix

package integration

import (
	"context"
	"flag"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// TestChaos runs a fleet of six processes, three with pgxpool and three with database/sql. The
// fleet saturates a capacity of 20 on one Postgres and one Redis with a replica. Meanwhile faults
// happen, one after the other, for as long as a flag says:
//
//	go test -race ./integration -run TestChaos -chaos 10m -seed 3 -v -timeout 0
//
// A step is a fault (chaos_faults_test.go), the recovery, and a calm. The seed alone decides which
// faults happen, in which order, to which process and for how long (chaos_schedule_test.go). Half
// way through a fault, another one may start.
//
// Asserted in each sample of Postgres, some hundred times a second (chaos_ledger_test.go):
//
//   - backends <= capacity, but for those that an excuse covers.
//
// An excuse is a window that docs/SAFETY.md declares, for named backends and a bounded time. This
// run opens these windows:
//
//   - a process is stopped past its leases: the backends that it held, until it wakes. Even seeds
//     set Config.Fence, which needs no such window;
//   - the network resets a connection to a backend in a query: that backend, until the query ends;
//   - a newcomer is the first to reach a Redis that restarted without persistence: the permits that
//     it is granted, for a lease;
//   - Redis fails over to a replica that lags: the permits granted meanwhile, for a lease;
//   - Redis goes back to a snapshot: the permits held before, for a third of a lease;
//   - an operator lowers the capacity: the difference, until it was given back.
//
// In each step:
//
//   - no operation fails, unless the fault may hit it: a fault of Postgres, a stop past the lease,
//     or an absence of Redis that is longer than the lease. Lost state, flushed scripts, lost
//     pushes and a Redis that is away for less than the lease make no operation fail;
//   - within a bound the whole capacity is in use again and Redis knows all sessions. In a run of a
//     minute or more, Redis grants again within 3 s after a loss of state.
//
// In each calm:
//
//   - at least 95% of the capacity is in use while a pool waits;
//   - permits <= capacity in Redis, and its queue is first come, first served
//     (chaos_queue_test.go);
//   - callers of one process are served in turn (chaos_worker_test.go).
//
// After the end there are no backends, permits, waiters or sessions. Redis has no key but meta, and
// no process has a goroutine beyond those that it began with.
//
// Each of these was once broken on purpose, and the run caught it. A grant beyond the capacity: too
// many backends. Connections not aborted while one process is without Redis: too many backends.
// Grants not paused after a restart of Redis: too many backends. The local queue served last come,
// first served: callers out of turn. The queue in Redis likewise: the fleet never settles. Leases
// trusted for less than Redis's absence: operations fail. A session not closed: goroutines are
// left.

var (
	chaosFor  = flag.Duration("chaos", 5*time.Second, "how long the chaos run takes")
	chaosOnly = flag.String("fault", "",
		"a regular expression: only the kinds of faults whose name it matches")
	chaosSeed = flag.Uint64("seed", 1,
		"the schedule of the chaos run; 0: one that is not the last one's")
)

const (
	chaosProcesses, chaosCapacity, chaosPlain = 6, 20, 4

	// settleTimeout is a bound for an overloaded machine, not a figure.
	settleTimeout = 45 * time.Second
	// flowAgain bounds the time until new grants after a loss of state: grants are paused for 0.45
	// leases.
	flowAgain = 3 * time.Second
	minUsed   = 0.95
	// stoodStill is how late a sample is on a machine that stands still. Leases then end by the
	// machine's doing, not by the fault.
	stoodStill = time.Second
	// A process judged in a calm has opened no connection since calmMargin before it.
	calmMargin = 500 * time.Millisecond
)

// chaos is one run.
type chaos struct {
	t        *testing.T
	seed     uint64
	job      job
	postgres *throwaway.Postgres
	ledger   *chronicle
	queues   *queues
	fleet    *fleet
	figures  *figures
	clients  map[string]*redis.Client

	primary, replica *throwaway.Redis

	began  time.Time // the origin of times: see from
	vacant []int     // places whose killed process is not replaced yet
	dead   bool      // in this step a process was killed, and its leases must expire
	excuse []bounded
	done   []string // the schedule so far
}

// bounded is an excuse with the number of backends that it may cover.
type bounded struct {
	*excuse
	most int
}

func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the chaos run takes too long")
	}
	seed := *chaosSeed
	for seed == 0 {
		seed = rand.Uint64() % 100_000
	}
	fence := seed%2 == 0
	r := startChaos(t, seed, fence)
	t.Logf("seed %d, Fence %v, for %v; again: go test ./integration -run TestChaos -chaos %v "+
		"-seed %d", seed, fence, *chaosFor, *chaosFor, seed)
	only := regexp.MustCompile(*chaosOnly)
	plan := newSchedule(seed, chaosProcesses, slices.DeleteFunc(slices.Clone(chaosKinds),
		func(k *kind) bool { return !only.MatchString(k.name) }))
	for began := time.Now(); time.Since(began) < *chaosFor && !t.Failed(); {
		r.step(plan.next())
	}
	if !t.Failed() {
		r.end()
	}
	t.Logf("seed %d:\n%s", seed, r.figures.table(r))
}

func startChaos(t *testing.T, seed uint64, fence bool) *chaos {
	t.Helper()
	r := &chaos{t: t, seed: seed, ledger: newChronicle(chaosCapacity), figures: newFigures(),
		clients: make(map[string]*redis.Client)}
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	if r.postgres, err = throwaway.StartPostgres(t.Context(),
		throwaway.PostgresOptions{MaxConnections: 100}); err != nil {
		skipIfMissing(t, err)
	}
	t.Cleanup(func() { _ = r.postgres.Stop() })
	if r.primary, err = throwaway.StartRedis(t.Context(), throwaway.RedisOptions{}); err != nil {
		skipIfMissing(t, err)
	}
	first := r.primary // they change places
	t.Cleanup(func() { _ = first.Stop() })
	second, err := r.primary.StartReplica(t.Context(), throwaway.RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = second.Stop() })
	r.replica = second
	r.job = job{
		Postgres: r.postgres.URL(), Semaphore: "chaos", Capacity: chaosCapacity, TTL: chaosTTL,
		Goroutines: 10,
		MinQuery:   longestRun / 4, MaxQuery: longestRun, QueryTimeout: queryTimeout,
		Fence: fence,
		Chaos: &chaosWork{Plain: "chaos-plain", PlainCapacity: chaosPlain, Takers: 2,
			Keep: 30 * time.Millisecond},
	}
	r.queues = newQueues(r.job.Semaphore, r.job.Chaos.Plain, func() int {
		r.ledger.mu.Lock()
		defer r.ledger.mu.Unlock()
		return r.ledger.capacity
	}, chaosPlain)
	r.queues.at(r.primary.Addr())
	r.ledger.begin(&episode{waiting: r.queues.someoneWaits}, "the start")
	watched := make(chan struct{}, 2)
	go func() { r.ledger.watch(ctx, r.postgres.AdminURL()); watched <- struct{}{} }()
	go func() { r.queues.watch(ctx); watched <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		<-watched
		<-watched
		for _, c := range r.clients {
			_ = c.Close()
		}
	})
	r.fleet = startFleet(t, r.primary.Addr(), r.postgres.Addr(), chaosProcesses, r.job)
	r.settle("the start")
	r.check()
	return r
}

// redis returns a client of the primary that no fault of the network reaches.
func (r *chaos) redis() *redis.Client {
	addr := r.primary.Addr()
	if r.clients[addr] == nil {
		r.clients[addr] = redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	}
	return r.clients[addr]
}

func (r *chaos) must(err error) {
	r.t.Helper()
	if err != nil {
		r.fail("the fault itself: %v", err)
	}
}

// excused declares a window for a number of backends at most. The function that it returns sets the
// window's end.
func (r *chaos) excused(why string, most int, covers func(backend) bool) (end func(time.Time)) {
	e := &excuse{why: why, covers: covers}
	if covers == nil {
		e.extra = most
	}
	r.ledger.excuse(e)
	r.excuse = append(r.excuse, bounded{e, most})
	return func(at time.Time) { r.ledger.until(e, at) }
}

// step runs one step of the schedule.
func (r *chaos) step(s step) {
	r.t.Log(s)
	r.done = append(r.done, s.String())
	r.dead, r.excuse = false, nil
	began := time.Now()
	e := &episode{waiting: r.queues.someoneWaits}
	r.ledger.begin(e, s.String())
	s.kind.do(r, s)
	r.settle(s.kind.name)
	recovered := time.Since(r.began)
	r.await("a grant and a checkout after the fault", func() bool {
		p := r.fleet.probed()
		return p.grant > 0 && p.checkout > 0
	})
	p := r.fleet.probed()
	_, late := r.ledger.last()
	if limit := flowAgain + 10*late; s.kind.forgets && !r.dead && p.grant > limit {
		// A short run is a test, which may not fail because a machine is slow.
		if *chaosFor >= time.Minute {
			r.fail("state was lost: the next new grant came after %v, want %v", p.grant, limit)
		}
		r.t.Logf("state was lost: the next new grant came after %v, a long run wants %v", p.grant,
			limit)
	}
	r.bounds()

	// The consequences of the fault that an excuse may cover are over: from here on nothing is
	// excused.
	r.ledger.begin(e, s.String()+": the calm after it")
	r.fleet.tell(calm)
	// The process that pauses does not pause now.
	r.settle(s.kind.name + ", at the begin of the calm")
	r.rest()
	r.ledger.setCalm(true)
	r.queues.setCalm(true)
	r.fleet.tell(calm) // Samples count from here on.
	calmed := time.Now()
	time.Sleep(s.calm)
	r.fleet.dropCalmReports()
	r.fleet.tell(storm)
	r.queues.setCalm(false)
	r.ledger.setCalm(false)
	f := r.ledger.figures()
	r.await("the reports on the calm", r.fleet.allReported)
	if passed := r.fleet.outOfTurn(r.ledger.openedSince(calmed.Add(-calmMargin))); len(passed) > 0 {
		r.fail("%d callers were not served in turn, in a calm:\n%s", len(passed),
			strings.Join(passed[:min(10, len(passed))], "\n"))
	}
	r.figures.add(s, f, p, recovered, time.Since(began))
	if expected := int(s.calm / sampleEvery); f.calmSamples < expected*7/10 {
		// A machine that is too busy to sample is too busy to hand permits over.
		r.figures.unjudged++
	} else if f.could > 0 {
		if used := float64(f.used) / float64(f.could); used < minUsed {
			r.fail("%.1f%% of the capacity was in use while a caller waited, in a calm (%d "+
				"samples, %d backends at the least)", 100*used, f.waitingInCalm, f.fewest)
		}
	}
	r.check()
}
