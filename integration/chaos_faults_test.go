//go:build unix

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// This file holds the faults of a chaos run. Each fault declares which operations may fail, and
// which windows of docs/SAFETY.md it opens. Any other operation that fails, and any other backend
// too many, is a violation.

const (
	// chaosTTL is the lease. A session renews its leases every third of that, and trusts them for
	// nine tenths. So whatever Redis does, the session loses nothing for the next 2.8 s. Faults of
	// Redis that must go unnoticed are shorter; the others are longer than the whole lease.
	chaosTTL   = 5 * time.Second
	unnoticed  = 2 * time.Second
	pastLease  = chaosTTL + time.Second
	longestRun = 60 * time.Millisecond // of a query
	// its caller's timeout: longer than any fault that no query may notice
	queryTimeout = 6 * time.Second

	// grace is the time for the consequences of a fault after its end: a query that ends, a
	// watchdog that runs, a connection that is found dead. They take some milliseconds; grace is
	// long enough for an overloaded machine.
	grace = 3 * time.Second
)

var chaosKinds = []*kind{
	// Faults of processes.
	{name: "kill", from: 0, to: time.Second, do: (*chaos).kill},
	{name: "leave, and come", from: 0, to: time.Second, do: (*chaos).deploy},
	{name: "stop and continue", from: 500 * time.Millisecond, to: unnoticed,
		do: (*chaos).stopShort},
	{name: "stop past the lease", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).stopLong},

	// Faults of Redis, and of the connections between the fleet and Redis.
	{name: "Redis stalled", from: time.Second, to: unnoticed, rides: true,
		do: (*chaos).redisStalled},
	{name: "Redis cut off", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisCut},
	{name: "Redis refuses", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisRefuses},
	{name: "Redis's replies dropped", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisMute},
	{name: "Redis's replies late", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisLate},
	{name: "some replies lost", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).repliesLost},
	{name: "Redis frozen", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisFrozen},
	{name: "Redis away past the lease", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).redisAway},
	{name: "one process without Redis", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).partition},
	{name: "pushes lost", from: time.Second, to: 3 * time.Second, rides: true,
		do: (*chaos).pushesLost},
	{name: "subscribers cut", from: time.Second, to: 3 * time.Second, rides: true,
		do: (*chaos).subscribersCut},
	{name: "SCRIPT FLUSH", from: time.Second, to: 2 * time.Second, rides: true,
		do: (*chaos).scriptsFlushed},

	// Faults that lose Redis's state.
	{name: "FLUSHALL", from: time.Second, to: time.Second, forgets: true, do: (*chaos).flushed},
	{name: "Redis killed and restarted", from: 0, to: 1500 * time.Millisecond, forgets: true,
		do: (*chaos).redisRestarted},
	{name: "Redis down past the lease", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).redisDown},
	{name: "Redis back to a snapshot", from: time.Second, to: pastLease + 2*time.Second,
		do: (*chaos).snapshot},
	{name: "newcomer at the restart", from: 0, to: time.Second, do: (*chaos).newcomer},
	{name: "failover", from: 0, to: time.Second, do: (*chaos).failover},
	{name: "failover to one that lags", from: 0, to: time.Second, do: (*chaos).laggingFailover},

	// Faults of Postgres, and of the connections between the fleet and Postgres.
	{name: "Postgres stalled", from: time.Second, to: 3 * time.Second, rides: true,
		do: (*chaos).postgresStalled},
	{name: "Postgres connections reset", from: time.Second, to: time.Second,
		do: (*chaos).postgresReset},
	{name: "Postgres cut off", from: 500 * time.Millisecond, to: 3 * time.Second,
		do: (*chaos).postgresCut},
	{name: "Postgres's replies dropped", from: 500 * time.Millisecond, to: 3 * time.Second,
		do: (*chaos).postgresMute},
	{name: "Postgres restarted", from: time.Second, to: time.Second,
		do: (*chaos).postgresRestarted},
	{name: "Postgres crashed", from: time.Second, to: time.Second, do: (*chaos).postgresCrashed},
	{name: "backends terminated", from: 500 * time.Millisecond, to: 2 * time.Second,
		do: (*chaos).terminated},

	// Faults seen in real deployments.
	{name: "Redis forgets connections", from: 500 * time.Millisecond, to: unnoticed, rides: true,
		do: (*chaos).redisForgets},
	{name: "Redis answers every 2 s", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).redisSlow},
	{name: "Redis out of memory", from: pastLease, to: pastLease + 2*time.Second,
		do: (*chaos).redisFull},
	{name: "demoted primary lives on", from: time.Second, to: unnoticed, do: (*chaos).demoted},
	{name: "Postgres forgets connections", from: 0, to: time.Second, do: (*chaos).postgresForgets},
	{name: "first host hangs", from: time.Second, to: 3 * time.Second, do: (*chaos).hostHangs},

	// Changes by an operator.
	{name: "capacity lowered", from: 2 * time.Second, to: 3 * time.Second,
		do: (*chaos).capacityLowered},
	{name: "capacity raised", from: 2 * time.Second, to: 3 * time.Second,
		do: (*chaos).capacityRaised},
	{name: "paused", from: 500 * time.Millisecond, to: unnoticed, rides: true, do: (*chaos).paused},
	{name: "drained", from: 100 * time.Millisecond, to: time.Second, do: (*chaos).drained},
	{name: "evicted", from: 100 * time.Millisecond, to: time.Second, do: (*chaos).evicted},
}

// from returns the time from which the fleet can recover. The figures count from then.
func (r *chaos) from(at time.Time) {
	r.began = at
	r.fleet.since(at)
}

// hold lets a fault last, and no longer than that. After half of the time, its rider starts.
func (r *chaos) hold(s step) {
	end := time.Now().Add(s.length)
	defer func() { time.Sleep(time.Until(end)) }()
	if s.rider == "" {
		return
	}
	time.Sleep(s.length / 2)
	const patience = 100 * time.Millisecond // a frozen server does not answer
	switch s.rider {
	case "kill":
		r.killAt(s.riding)
		r.vacant = append(r.vacant, s.riding)
	case "terminate":
		r.fleet.allow(-1, time.Now(), time.Now().Add(grace))
		r.terminate(1)
	case "SCRIPT FLUSH":
		ctx, cancel := context.WithTimeout(r.t.Context(), patience)
		_ = r.redis().ScriptFlush(ctx).Err()
		cancel()
	case "cut subscribers":
		ctx, cancel := context.WithTimeout(r.t.Context(), patience)
		_ = r.redis().Do(ctx, "CLIENT", "KILL", "TYPE", "pubsub").Err()
		cancel()
	}
}

// Faults of processes.

func (r *chaos) killAt(at int) {
	r.fleet.places[at].process.signal(r.t, syscall.SIGKILL)
	r.dead = true
}

func (r *chaos) kill(s step) {
	r.killAt(s.process)
	r.from(time.Now())
	r.hold(s)
	r.vacant = append(r.vacant, s.process)
}

func (r *chaos) deploy(s step) {
	r.fleet.leaves(s.process)
	r.from(time.Now())
	r.hold(s)
	r.fleet.launch(s.process).w.joined(r.t)
}

func (r *chaos) stopShort(s step) {
	p := r.fleet.places[s.process].process
	p.signal(r.t, syscall.SIGSTOP)
	r.hold(s)
	p.signal(r.t, syscall.SIGCONT)
	r.from(time.Now())
}

// A process that is stopped for longer than its leases cannot close its connections. Without Fence
// its backends stay alive while its permits are granted to others, until it wakes and its watchdog
// runs.
func (r *chaos) stopLong(s step) {
	p := r.fleet.places[s.process].process
	stopped := time.Now()
	p.signal(r.t, syscall.SIGSTOP)
	r.from(stopped)
	end := func(time.Time) {}
	if !r.job.Fence {
		end = r.excused("the backends of "+p.name+", which was stopped", r.ledger.held(p.name)+1,
			func(b backend) bool {
				return b.process == p.name && b.started.Before(stopped.Add(100*time.Millisecond))
			})
	}
	r.hold(s)
	p.signal(r.t, syscall.SIGCONT)
	woke := time.Now()
	end(woke.Add(grace))
	r.fleet.allow(s.process, stopped, woke.Add(grace))
}

// Changes by an operator. Lowering the capacity revokes no permit: processes give permits back as
// callers return their connections.

func (r *chaos) setCapacity(n int) {
	before := r.queues.capacityOf()
	r.ledger.setCapacity(n)
	if n < before {
		end := r.excused("the permits granted before the capacity was lowered", before-n, nil)
		end(time.Now().Add(chaosTTL + grace))
	}
	// The client that carries the change makes no difference.
	teller := r.fleet.places[rand.IntN(len(r.fleet.places))].process
	teller.w.tell(r.t, fmt.Sprintf("%s %d", setCapacity, n))
}

func (r *chaos) capacityLowered(s step) { r.capacityFor(s, r.job.Capacity-2-s.amount) }
func (r *chaos) capacityRaised(s step)  { r.capacityFor(s, r.job.Capacity+s.amount) }

// capacityFor sets another capacity for a while.
func (r *chaos) capacityFor(s step, n int) {
	r.from(time.Now())
	r.setCapacity(n)
	r.settle("capacity " + fmt.Sprint(n))
	r.hold(s)
	r.setCapacity(r.job.Capacity)
}
