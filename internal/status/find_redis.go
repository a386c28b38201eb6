package status

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// redisGone says that Redis cannot be asked.
func (x *diagnosis) redisGone() {
	why := x.RedisError
	if _, rest, ok := strings.Cut(why, "Redis is unavailable: "); ok {
		why = rest // the rest says no more than that
	}
	if strings.HasSuffix(why, "context deadline exceeded") {
		why += ", no answer in time"
	}
	x.add(Critical, "redis", "Redis cannot be asked: "+end(why)+" Sessions use what they hold as "+
		"long as their leases are proven, some seconds, and nothing new is granted.",
		x.Command("doctor"), "Tries each step to Redis, and says which one fails.")
}

// sessions finds sessions that do not fit together, or do not answer.
func (x *diagnosis) sessions() {
	var quiet []Process
	versions := make(map[string]int)
	terms := make(map[float64]int)
	for _, p := range x.Processes {
		if p.TTL > 0 && p.Age > silent*p.TTL {
			quiet = append(quiet, p)
		}
		if p.Version != "" && p.Version != "(devel)" {
			versions[p.Version]++
		}
		if p.TTL > 0 {
			terms[p.TTL]++
		}
	}
	switch n := len(quiet); {
	case n >= 2 && 2*n >= len(x.Processes):
		x.add(Critical, "silent", fmt.Sprintf("%d of %d sessions have sent no heartbeat for up to "+
			"%s: Redis is slow or was cut off, or they are.", n, len(x.Processes),
			Span(oldest(quiet))), x.Command("doctor"), "Shows how fast Redis answers.")
	case n > 0:
		x.add(Warning, "silent", fmt.Sprintf("%s %s sent no heartbeat for %s: stopped, starved of "+
			"CPU, or cut off from Redis. What it holds is free at the end of its lease, in %s.",
			titles(quiet), Verb(n, "has", "have"), Span(oldest(quiet)), Span(longest(quiet))), "", "")
	}
	if len(versions) > 1 {
		list := make([]string, 0, len(versions))
		for version, n := range versions {
			list = append(list, fmt.Sprintf("%s in %s", version, Count(n, "process")))
		}
		slices.Sort(list)
		x.add(Info, "versions", "Not all run the same version of PassBuddy: "+
			strings.Join(list, ", ")+".", "", "")
	}
	if len(terms) > 1 {
		list := make([]float64, 0, len(terms))
		for ttl := range terms {
			list = append(list, ttl)
		}
		slices.Sort(list)
		x.add(Warning, "ttl", fmt.Sprintf("Not all have leases of the same length: %s to %s. "+
			"Fairness and recovery go by the shortest, and a crash costs the longest.",
			Span(list[0]), Span(list[len(list)-1])), "", "Give all the same semaphore.Config.TTL.")
	}
}

func oldest(list []Process) (age float64) {
	for _, p := range list {
		age = max(age, p.Age)
	}
	return age
}

func longest(list []Process) (lease float64) {
	for _, p := range list {
		lease = max(lease, p.Lease)
	}
	return lease
}

// noAnswer is how the log words an outage: see core's incidents.
const (
	noAnswer   = "Redis did not answer for "
	leasesLost = "leases lost: "
)

// redis finds that Redis is slow, was away, or lost its state.
func (x *diagnosis) redis() {
	var worst time.Duration
	latest := lately.Seconds()
	cut, lost := make(map[string]bool), make(map[string]bool)
	stateLost := -1.0
	for _, e := range x.Events {
		ago := x.since(e.At)
		if ago > lately.Seconds() {
			continue
		}
		if e.Kind == "state lost" {
			stateLost = ago
		}
		if _, rest, ok := strings.Cut(e.Detail, noAnswer); ok && e.Kind == "reported" {
			text, _, _ := strings.Cut(rest, ";")
			d, _ := time.ParseDuration(strings.TrimSpace(text))
			worst, latest = max(worst, d), min(latest, ago)
			cut[e.Session] = true
		}
		if e.Kind == "reported" && strings.Contains(e.Detail, leasesLost) {
			lost[e.Session] = true
		}
	}
	if len(cut) > 0 {
		severity := Warning
		if latest < 60 {
			severity = x.severe(Warning)
		}
		if latest < 60 && 2*len(cut) >= len(x.Processes) {
			severity = Critical
		}
		text := fmt.Sprintf("Redis did not answer %s for up to %s, last %s ago.",
			Count(len(cut), "session"), Span(worst.Seconds()), Span(latest))
		if len(lost) > 0 {
			text += fmt.Sprintf(" %d of them lost leases, and cut connections.", len(lost))
		}
		x.add(severity, "redis-stalled", text, x.Command("doctor"),
			"Shows Redis's latency, memory and persistence, which stall it most often.")
	} else if len(lost) > 0 {
		x.add(Warning, "lost-leases", fmt.Sprintf("%s lost leases in the last %s, and cut "+
			"connections.", Count(len(lost), "session"), Span(lately.Seconds())), x.Command("events"),
			"Shows which, and when.")
	}
	if stateLost >= 0 && x.GrantsPaused == 0 {
		x.add(Warning, "state-was-lost", fmt.Sprintf("Redis lost its state %s ago: restarted "+
			"without persistence, flushed, failed over, or keys evicted.", Span(stateLost)),
			x.Command("doctor"), "Shows persistence, eviction policy and replicas.")
	}
	x.slow()
}

// slow finds replies that take a large part of a lease.
func (x *diagnosis) slow() {
	var slowest Process
	share := 0.0
	n := 0
	for _, p := range x.Processes {
		if p.TTL <= 0 {
			continue
		}
		part := p.RoundTrip / p.TTL
		if part >= slowRedis {
			n++
		}
		if part > share {
			share, slowest = part, p
		}
	}
	if n == 0 {
		return
	}
	severity := Warning
	if share >= tooSlowRedis {
		severity = Critical
	}
	x.add(severity, "slow-redis", fmt.Sprintf("Redis's replies take up to %s in %s, seen by %s: "+
		"%.0f %% of a lease.", Span(slowest.RoundTrip), Count(n, "process"), slowest.Title(),
		100*share), x.Command("doctor"), "Shows how fast Redis answers here. A longer "+
		"semaphore.Config.TTL bears slower replies.")
}
