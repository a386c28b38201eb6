// Package passbuddyprom gives PassBuddy's figures to Prometheus.
//
//	metrics := passbuddyprom.New(passbuddyprom.Options{})
//	sem, err := semaphore.New(ctx, client, semaphore.Config{
//		Name: "orders", Capacity: 40, Observer: metrics.Observer("orders"),
//	})
//	...
//	metrics.Add("orders", sem)
//	prometheus.MustRegister(metrics)
//
// Each process exposes its own part: sum what it holds and what waits. One process of the fleet, or
// `passbuddy serve`, can expose the fleet as a whole beside that: see [NewFleet].
//
// Figures are read when they are scraped, and cost no round trip. Only waits and opens are told as
// they happen, for the histograms; a checkout that need not wait costs nothing.
//
// A full fleet is a healthy one: alert on callers that time out, not on permits in use. The folder
// has a dashboard and alert rules.
package passbuddyprom

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbuddy/passbuddy/semaphore"
)

// Options are those of [New]. The zero value has defaults.
type Options struct {
	// WaitBuckets and OpenBuckets are the upper bounds of the histograms' buckets, in seconds.
	// Default 1 ms to 30 s. Native histograms are kept beside them, for a scraper that asks.
	WaitBuckets, OpenBuckets []float64
}

// Metrics are those of the sessions of this process: a prometheus.Collector.
type Metrics struct {
	waits, opens *prometheus.HistogramVec

	mu       sync.Mutex
	sessions []session // guarded by mu
}

type session struct {
	name string
	sem  *semaphore.Semaphore
}

var defaultBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}

// New returns metrics of no session.
func New(opts Options) *Metrics {
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		if len(buckets) == 0 {
			buckets = defaultBuckets
		}
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets, NativeHistogramBucketFactor: 1.1,
			NativeHistogramMaxBucketNumber: 100,
		}, []string{"semaphore", "pool"})
	}
	return &Metrics{
		waits: histogram("passbuddy_pool_wait_seconds",
			"How long checkouts waited that could not be served at once.", opts.WaitBuckets),
		opens: histogram("passbuddy_pool_open_seconds",
			"How long it took to open a connection.", opts.OpenBuckets),
	}
}

// Add exposes a session under the label semaphore=name. The session counts as closed by Remove, or
// by the next Add of that name, which replaces it: Prometheus refuses all metrics if two have the
// same labels. Add panics if sem is nil.
func (m *Metrics) Add(name string, sem *semaphore.Semaphore) {
	if sem == nil {
		panic("passbuddyprom: bug: Add of a nil semaphore: look at the error of New or Open")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = slices.DeleteFunc(m.sessions, func(s session) bool { return s.name == name })
	m.sessions = append(m.sessions, session{name, sem})
}

// Remove undoes Add.
func (m *Metrics) Remove(sem *semaphore.Semaphore) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = slices.DeleteFunc(m.sessions, func(s session) bool { return s.sem == sem })
}

// Observer is semaphore.Config.Observer for the histograms of a session. Without it, they are empty.
func (m *Metrics) Observer(name string) semaphore.Observer { return observer{m, name} }

type observer struct {
	metrics *Metrics
	name    string
}

func (o observer) Observe(what semaphore.Observation) {
	switch what.Kind {
	case semaphore.ObservedWait:
		o.metrics.waits.WithLabelValues(o.name, what.Pool).Observe(what.Duration.Seconds())
	case semaphore.ObservedOpen:
		if what.Err == nil {
			o.metrics.opens.WithLabelValues(o.name, what.Pool).Observe(what.Duration.Seconds())
		}
	}
}

// desc describes a metric of a session; its name begins with passbuddy_.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("passbuddy_"+name, help, append([]string{"semaphore"}, labels...), nil)
}

var (
	info      = desc("info", "1 for each session.", "version", "owner")
	capacity  = desc("capacity", "The capacity in force, as this process last heard.")
	held      = desc("permits_held", "Permits that this process holds.")
	requests  = desc("requests_waiting", "Requests of this process that wait in Redis's queue.")
	paused    = desc("grants_paused", "1 while nothing is granted: by an operator, or after a loss of state.")
	lost      = desc("leases_lost_total", "Leases that could no longer be proven.")
	fenced    = desc("connections_fenced_total", "Backends of expired leases that this process ended.")
	redisUp   = desc("redis_up", "1 if Redis answered the last call.")
	redisRTT  = desc("redis_round_trip_seconds", "What Redis's replies take: the longest of late.")
	redisSent = desc("redis_requests_total", "Round trips to Redis.", "kind")
	outages   = desc("redis_outages_total", "How often Redis stopped answering.")

	connections = desc("pool_connections", "Connections of the pool by state.", "pool", "state")
	poolPermits = desc("pool_permits", "Permits that the pool owns.", "pool")
	waiting     = desc("pool_waiting", "Callers that wait for a connection.", "pool")
	oldestWait  = desc("pool_oldest_wait_seconds", "How long the first of those has waited.", "pool")
	oldestUse   = desc("pool_oldest_use_seconds",
		"How long the connection that was checked out first has been in use, by the last two looks.", "pool")
	hijacked = desc("pool_hijacked", "Connections in use that were taken out of the pool for good.", "pool")
	longUse  = desc("pool_long_use",
		"Connections that have been in use for a minute or longer, by the last two looks.", "pool")
	waits     = desc("pool_waits_total", "Checkouts that had to wait, by how they ended.", "pool", "result")
	waited    = desc("pool_waited_seconds_total", "The sum of those waits.", "pool")
	opened    = desc("pool_opened_total", "Connections opened.", "pool")
	openTime  = desc("pool_opening_seconds_total", "The sum of what opening them took.", "pool")
	notOpened = desc("pool_open_failures_total", "Connections that could not be opened.", "pool")
	recalls   = desc("recalls_total", "Permits that the fleet asked back.", "pool")
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		info, capacity, held, requests, paused, lost, fenced, redisUp, redisRTT, redisSent, outages,
		connections, poolPermits, waiting, oldestWait, oldestUse, hijacked, longUse, waits, waited, opened, openTime,
		notOpened, recalls,
	} {
		ch <- d
	}
	m.waits.Describe(ch)
	m.opens.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.mu.Lock()
	sessions := slices.Clone(m.sessions)
	m.mu.Unlock()
	for _, s := range sessions {
		collectSession(ch, s.name, s.sem.Stats())
	}
	m.waits.Collect(ch)
	m.opens.Collect(ch)
}

func collectSession(ch chan<- prometheus.Metric, name string, s semaphore.Stats) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{name}, labels...)...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, append([]string{name}, labels...)...)
	}
	gauge(info, 1, s.Version, s.Owner)
	gauge(capacity, float64(s.Capacity))
	gauge(held, float64(s.Held))
	gauge(requests, float64(s.Waiting))
	gauge(paused, one(s.Paused))
	counter(lost, float64(s.Lost))
	counter(fenced, float64(s.Fenced))
	gauge(redisUp, one(s.Up))
	gauge(redisRTT, s.RoundTrip.Seconds())
	counter(redisSent, float64(s.Heartbeats), "heartbeat")
	counter(redisSent, float64(s.Requests), "batch")
	counter(outages, float64(s.Outages))
	for _, p := range s.Pools {
		gauge(connections, float64(p.InUse), p.Name, "in_use")
		gauge(connections, float64(p.Idle), p.Name, "idle")
		gauge(connections, float64(p.Opening), p.Name, "opening")
		gauge(connections, float64(p.Closing), p.Name, "closing")
		gauge(poolPermits, float64(p.Permits), p.Name)
		gauge(waiting, float64(p.Waiting), p.Name)
		gauge(oldestWait, p.OldestWait.Seconds(), p.Name)
		gauge(oldestUse, p.OldestUse.Seconds(), p.Name)
		gauge(hijacked, float64(p.Hijacked), p.Name)
		gauge(longUse, float64(p.LongUse), p.Name)
		counter(waits, float64(p.Waits-p.Timeouts-p.Canceled-p.Unavailable), p.Name, "ok")
		counter(waits, float64(p.Timeouts), p.Name, "timeout")
		counter(waits, float64(p.Canceled), p.Name, "canceled")
		counter(waits, float64(p.Unavailable), p.Name, "unavailable")
		counter(waited, p.WaitTime.Seconds(), p.Name)
		counter(opened, float64(p.Opened), p.Name)
		counter(openTime, p.OpenTime.Seconds(), p.Name)
		counter(notOpened, float64(p.Failed), p.Name)
		counter(recalls, float64(p.Recalled), p.Name)
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
