package holdrun

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/membership"
	"github.com/passbuddy/passbuddy/cmd/passbuddy/internal/target"
	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	maxPermits = 1000 // that semaphore.AcquireN takes
	maxLinger  = time.Minute
	maxGrace   = time.Hour

	defaultWait = 30 * time.Second
	// defaultLinger is long beside what a backend takes to end after its client: 1.4 ms at the
	// median and 9 ms at the 99th percentile on loopback, and half a round trip more elsewhere.
	defaultLinger = 100 * time.Millisecond
)

// Options says what Run is to do.
type Options struct {
	Target target.Target
	N      int           // permits
	Wait   time.Duration // for them, longest; 0: try once
	// Capacity is declared while the command runs; 0: none is. See package membership.
	Capacity int
	TTL      time.Duration // of the leases
	Grace    time.Duration // between SIGTERM and SIGKILL; 0: a tenth of TTL
	Linger   time.Duration // between the command's end and the release
	Command  []string      // its name, and its arguments
}

func (o Options) grace() time.Duration { return cmp.Or(o.Grace, o.TTL/10) }

func (o Options) owner() string { return membership.RunOwner(filepath.Base(o.Command[0])) }

// validate refuses what semaphore.Config does not refuse itself, by the name of its flag.
func (o Options) validate() error {
	switch {
	case len(o.Command) == 0:
		return errors.New("which command? Give it after --")
	case o.N < 1 || o.N > maxPermits:
		return fmt.Errorf("-n is %d: it must be from 1 to %d", o.N, maxPermits)
	case o.Wait < 0:
		return fmt.Errorf("--wait is %v: it must not be negative", o.Wait)
	case o.Capacity < 0 || o.Capacity > membership.Most:
		return fmt.Errorf("--capacity is %d: it must be from 1 to %d", o.Capacity, membership.Most)
	case o.Capacity > 0 && o.N > o.Capacity:
		return fmt.Errorf("-n is %d: it is more than --capacity, %d", o.N, o.Capacity)
	case o.TTL <= 0:
		return fmt.Errorf("--ttl is %v: it must be positive, such as %v", o.TTL,
			semaphore.DefaultTTL)
	case o.Grace < 0 || o.Grace > maxGrace:
		return fmt.Errorf("--grace is %v: it must be from 0 to %v", o.Grace, maxGrace)
	case o.Linger < 0 || o.Linger > maxLinger:
		return fmt.Errorf("--linger is %v: it must be from 0 to %v", o.Linger, maxLinger)
	}
	return nil
}
