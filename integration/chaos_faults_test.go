//go:build unix

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
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
	queryMost = 6 * time.Second

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

// Faults of Redis, and of the connections to it. Only waiters may notice the short ones.

func (r *chaos) betweenRedis(s step, at int, begin, end func(*throwaway.Proxy)) time.Time {
	r.fleet.redisProxies(at, begin)
	r.hold(s)
	r.fleet.redisProxies(at, end)
	back := time.Now()
	if at < 0 {
		r.from(back)
	}
	return back
}

func refuse(p *throwaway.Proxy) { _ = p.Refuse(); p.Reset() }
func accept(p *throwaway.Proxy) { _ = p.Accept() }
func mute(p *throwaway.Proxy)   { p.DropReplies(true) }
func unmute(p *throwaway.Proxy) { p.DropReplies(false) }

func (r *chaos) redisStalled(s step) {
	r.betweenRedis(s, -1, (*throwaway.Proxy).Stall, (*throwaway.Proxy).Resume)
}

func (r *chaos) redisCut(s step) {
	r.betweenRedis(s, -1, (*throwaway.Proxy).Cut, (*throwaway.Proxy).Heal)
}

func (r *chaos) redisRefuses(s step) { r.betweenRedis(s, -1, refuse, accept) }
func (r *chaos) redisMute(s step)    { r.betweenRedis(s, -1, mute, unmute) }

func (r *chaos) redisLate(s step) {
	r.betweenRedis(s, -1, (*throwaway.Proxy).StallReplies, (*throwaway.Proxy).Resume)
}

func (r *chaos) repliesLost(s step) {
	r.betweenRedis(s, -1, func(p *throwaway.Proxy) { p.LoseReplies(s.amount, nil) },
		func(p *throwaway.Proxy) { p.LoseReplies(0, nil) })
}

func (r *chaos) redisFrozen(s step) {
	r.must(r.primary.Pause(r.t.Context()))
	r.hold(s)
	r.must(r.primary.Continue())
	r.from(time.Now())
}

// awayBy is one of the ways in which Redis can be unreachable.
func awayBy(way int) (begin, end func(*throwaway.Proxy)) {
	switch way % 4 {
	case 0:
		return (*throwaway.Proxy).Stall, (*throwaway.Proxy).Resume
	case 1:
		return (*throwaway.Proxy).Cut, (*throwaway.Proxy).Heal
	case 2:
		return refuse, accept
	default:
		return mute, unmute
	}
}

func (r *chaos) redisAway(s step) {
	gone := time.Now()
	begin, end := awayBy(s.way)
	back := r.betweenRedis(s, -1, begin, end)
	r.fleet.allow(-1, gone, back.Add(grace))
}

// By then the process has closed its connections, and the others are granted its permits.
func (r *chaos) partition(s step) {
	gone := time.Now()
	r.from(gone)
	begin, end := awayBy(s.way)
	back := r.betweenRedis(s, s.process, begin, end)
	r.fleet.allow(s.process, gone, back.Add(grace))
}

// The server refuses PUBLISH and subscriptions. Scripts still run.
func (r *chaos) pushesLost(s step) {
	r.must(r.redis().Do(r.t.Context(), "ACL", "SETUSER", "default", "resetchannels").Err())
	r.hold(s)
	r.must(r.redis().Do(r.t.Context(), "ACL", "SETUSER", "default", "allchannels").Err())
	r.from(time.Now())
}

func (r *chaos) subscribersCut(s step) {
	r.hold(r.now(s))
	began := time.Now()
	for time.Since(began) < s.length {
		r.must(r.redis().Do(r.t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
		time.Sleep(20 * time.Millisecond)
	}
	r.from(time.Now())
}

func (r *chaos) scriptsFlushed(s step) {
	r.hold(r.now(s))
	began := time.Now()
	for time.Since(began) < s.length {
		r.must(r.redis().ScriptFlush(r.t.Context()).Err())
		time.Sleep(20 * time.Millisecond)
	}
	r.from(time.Now())
}

// now runs s without a length of its own: only its rider runs.
func (r *chaos) now(s step) step {
	s.length = 0
	return s
}

// Faults that lose Redis's state. No holder loses a permit.

func (r *chaos) flushed(s step) {
	r.must(r.redis().FlushAll(r.t.Context()).Err())
	r.from(time.Now())
}

func (r *chaos) redisRestarted(s step) {
	r.primary.Kill()
	r.hold(s)
	r.must(r.primary.RestartEmpty(r.t.Context())) // As a replica it may have kept a snapshot.
	r.from(time.Now())
}

func (r *chaos) redisDown(s step) {
	gone := time.Now()
	r.redisRestarted(s)
	r.fleet.allow(-1, gone, time.Now().Add(grace))
}

// Redis comes back with a snapshot whose leases have ended: to it, all permits are free. A holder
// of a permit that Redis does not know learns it from its next heartbeat.
func (r *chaos) snapshot(s step) {
	r.must(r.redis().Save(r.t.Context()).Err())
	r.hold(s)
	gone := time.Now()
	r.primary.Kill()
	r.must(r.primary.Restart(r.t.Context()))
	back := time.Now()
	r.from(back)
	end := r.excused("the permits held before Redis went back to a snapshot", r.job.Capacity,
		func(b backend) bool { return b.started.Before(back) })
	end(back.Add(chaosTTL/3 + grace))
	r.fleet.allow(-1, gone, back.Add(chaosTTL/3+grace))
}

// A process that has never held a permit is the first to reach the restarted Redis, which takes it
// for a new semaphore. Redis may grant it what others hold, until their next heartbeat.
func (r *chaos) newcomer(s step) {
	r.fleet.leaves(s.process)
	r.primary.Kill()
	gone := time.Now()
	p := r.fleet.launch(s.process)
	r.hold(s)
	r.must(r.primary.RestartEmpty(r.t.Context())) // As a replica it may have kept a snapshot.
	back := time.Now()
	r.from(back)
	end := r.excused("the permits granted to "+p.name+", which came first", r.job.Goroutines,
		func(b backend) bool { return b.process == p.name })
	// A heartbeat passes, and the process gives the excess permits back.
	end(back.Add(chaosTTL + grace))
	p.w.joined(r.t)
	r.fleet.allow(-1, gone, back.Add(grace))
}

// Another server takes over in good order, with all that the first one stored.
func (r *chaos) failover(s step) {
	r.fleet.redisProxies(-1, (*throwaway.Proxy).Stall)
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	r.must(r.replica.AwaitSync(ctx, r.primary))
	r.promote(ctx)
	r.fleet.redisProxies(-1, (*throwaway.Proxy).Resume)
	r.from(time.Now())
	r.replicate(ctx)
}

// The primary dies, and the replica does not know the grants of the last moment.
func (r *chaos) laggingFailover(s step) {
	ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
	defer cancel()
	r.must(r.replica.CutReplication(ctx))
	cut := time.Now()
	// Permits move meanwhile.
	r.fleet.leaves(s.process)
	r.fleet.launch(s.process).w.joined(r.t)
	r.hold(s)
	r.primary.Kill()
	r.must(r.replica.HealReplication(ctx))
	at := r.promote(ctx)
	r.from(at)
	end := r.excused("the permits granted while the replica lagged", r.job.Capacity,
		func(b backend) bool {
			return b.started.After(cut.Add(-chaosTTL/10)) && b.started.Before(at.Add(chaosTTL/10))
		})
	end(at.Add(chaosTTL + grace)) // a lease
	r.fleet.allow(-1, cut, at.Add(chaosTTL+grace))
	r.replicate(ctx)
}

// promote makes the replica the primary, and redirects every process there.
func (r *chaos) promote(ctx context.Context) (at time.Time) {
	r.must(r.replica.Follow(ctx, ""))
	r.primary, r.replica = r.replica, r.primary
	r.queues.at(r.primary.Addr())
	r.fleet.redisProxies(-1, func(p *throwaway.Proxy) {
		p.Retarget(r.primary.Addr())
		p.Reset()
	})
	return time.Now()
}

// replicate makes the former primary a replica of the new one.
func (r *chaos) replicate(ctx context.Context) {
	r.must(r.replica.RestartEmpty(ctx))
	r.must(r.replica.Follow(ctx, r.primary.Addr()))
	r.must(r.replica.AwaitSync(ctx, r.primary))
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
