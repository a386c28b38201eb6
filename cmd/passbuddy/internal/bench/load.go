package bench

import (
	"fmt"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/fleet"
)

const (
	// settled is how long a fleet takes to start: later connects are due to the traffic, not to the
	// start.
	settled = 3 * time.Second
	// maxOutstanding bounds the operations in flight of one process of an open loop.
	maxOutstanding = 2000
	// openPool is the size of an open loop's pool that has no cap of its own.
	openPool = 50
	// pauseMean is the mean pause of ordinary traffic.
	pauseMean = 50 * time.Millisecond
)

// load is how the operations of a scenario arrive. The zero value is a closed loop: goroutines that
// never pause.
type load struct {
	percent int  // of the capacity's service rate: the rate of an open loop
	skewed  bool // Zipf's law with s = 1 divides the open loop's demand; else it is divided evenly
	pause   time.Duration
}

func (l load) String() string {
	switch {
	case l.percent > 0 && l.skewed:
		return fmt.Sprintf("%d%% skewed", l.percent)
	case l.percent > 0:
		return fmt.Sprintf("%d%% even", l.percent)
	case l.pause > 0:
		return fmt.Sprintf("pauses of %v", l.pause)
	}
	return ""
}

// offered returns the rate of arrivals per second: a part of the rate that the capacity could serve
// if only the queries took time.
func (sp spec) offered() float64 {
	seconds := sp.scenario.workload.takes.Seconds()
	if seconds == 0 {
		return 0
	}
	return float64(sp.scenario.load.percent) / 100 * float64(sp.capacity) / seconds
}

// loads returns the load of each process. An open loop grows to its rate in ramp, for all
// strategies alike. The cold start measures a fleet that has no connection yet.
func (sp spec) loads(ramp time.Duration) []fleet.Load {
	l := sp.scenario.load
	loads := make([]fleet.Load, sp.scenario.processes())
	if l.percent == 0 {
		for i := range loads {
			loads[i].Pause = l.pause
		}
		return loads
	}
	skew := 0.0
	if l.skewed {
		skew = 1
	}
	for i, part := range zipf(len(loads), skew) {
		loads[i] = fleet.Load{Rate: part * sp.offered(), Ramp: ramp, MaxOutstanding: maxOutstanding}
	}
	return loads
}
