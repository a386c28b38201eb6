//go:build unix

package integration

import (
	"context"
	"time"

	"github.com/passbuddy/passbuddy/internal/throwaway"
)

// This file holds the faults of Redis in a chaos run, and of the connections to it. Only waiters
// may notice the short ones.

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
