package passbuddyprom

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/passbuddy/passbuddy/semaphore"
)

// FleetOptions are those of [NewFleet]. The zero value has defaults.
type FleetOptions struct {
	Timeout time.Duration // of Redis, at each scrape; default 2s
}

// NewFleet returns a collector of the fleet as a whole, by an inspector, under the label
// semaphore=name. One process of the fleet exposes it, or a process beside it: if several did, a
// sum would count the fleet as often. Each scrape reads the fleet's state from Redis. If that fails,
// only passbuddy_fleet_up is there, and 0. NewFleet panics if inspector is nil.
func NewFleet(name string, inspector *semaphore.Inspector, opts FleetOptions) prometheus.Collector {
	if inspector == nil {
		panic("passbuddyprom: bug: NewFleet of a nil inspector: look at the error of NewInspector")
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 2 * time.Second
	}
	return &fleet{name, inspector, opts}
}

type fleet struct {
	name      string
	inspector *semaphore.Inspector
	opts      FleetOptions
}

// noCapacity is what `passbuddy run` and `passbuddy proxy` declare where others limit the fleet. It
// is no declaration: see internal/status.
const noCapacity = 1_000_000

var (
	fleetUp          = desc("fleet_up", "1 if the fleet's state could be read.")
	fleetCapacity    = desc("fleet_capacity", "The capacity in force, 0 if none is.")
	fleetHeld        = desc("fleet_permits_held", "Permits held by anyone, those in quarantine included.")
	fleetQuarantined = desc("fleet_permits_quarantined",
		"Permits whose leases have expired, and whose backends may still be there.")
	fleetSessions = desc("fleet_sessions", "Live sessions.")
	fleetRequests = desc("fleet_requests_waiting", "Requests in Redis's queue.")
	fleetCallers  = desc("fleet_callers_waiting", "Callers that wait for a connection, in all processes.")
	fleetWait     = desc("fleet_oldest_wait_seconds", "How long the first of those has waited.")
	fleetPaused   = desc("fleet_paused", "1 while an operator has paused grants.")
	fleetGate     = desc("fleet_grants_paused_seconds",
		"For how long nothing is granted, because Redis lost its state.")
	fleetMismatch = desc("fleet_capacities_declared",
		"How many different capacities the sessions declare: the smallest is in force.")
)

func (f *fleet) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		fleetUp, fleetCapacity, fleetHeld, fleetQuarantined, fleetSessions, fleetRequests,
		fleetCallers, fleetWait, fleetPaused, fleetGate, fleetMismatch,
	} {
		ch <- d
	}
}

func (f *fleet) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, f.name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), f.opts.Timeout)
	defer cancel()
	s, err := f.inspector.Snapshot(ctx)
	gauge(fleetUp, one(err == nil))
	if err != nil {
		return
	}
	declared, inForce := make(map[int]bool), s.Capacity
	if inForce >= noCapacity && s.OperatorCapacity == 0 {
		inForce = 0 // only such sessions are there
	}
	callers, oldest := 0, time.Duration(0)
	for _, session := range s.Sessions {
		if session.Capacity > 0 && session.Capacity < noCapacity {
			declared[session.Capacity] = true
		}
		for _, p := range session.Pools {
			callers += p.Waiting
			oldest = max(oldest, p.OldestWait)
		}
	}
	gauge(fleetCapacity, float64(inForce))
	gauge(fleetHeld, float64(s.Held))
	gauge(fleetQuarantined, float64(s.Quarantined))
	gauge(fleetSessions, float64(len(s.Sessions)))
	gauge(fleetRequests, float64(len(s.Waiters)))
	gauge(fleetCallers, float64(callers))
	gauge(fleetWait, oldest.Seconds())
	gauge(fleetPaused, one(s.Pause != nil))
	gauge(fleetGate, s.GrantsPausedFor.Seconds())
	gauge(fleetMismatch, float64(len(declared)))
}
