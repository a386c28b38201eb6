package integration

import (
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// An operator lowers the capacity of a saturated fleet with even shares. No process holds an idle
// connection to give up, and none has a claim to another's permits. The fleet drains all the same,
// evenly, and no operation fails. When the operator raises the capacity again, the fleet uses it
// again.
func TestCapacityIsLoweredUnderLoad(t *testing.T) {
	const processes, capacity, lowered = 4, 20, 8
	s := startServers(t, 100)
	for _, integration := range subset.Of(t, 1, []string{"pgxpool", "stdlib"}) {
		t.Run(integration, func(t *testing.T) {
			seen := s.ledger(t)
			fleet := make(named)
			j := saturating(integration, t.Name(), capacity)
			began := time.Now()
			s.run(t, fleet, processes, j)
			even := func(n int) func(shares) bool {
				return func(held shares) bool { return held.even(n, processes) }
			}
			seen.await(t, began, even(capacity))

			operator, err := semaphore.Open(t.Context(), s.redis.URL(),
				semaphore.Config{Name: t.Name(), Capacity: capacity, TTL: j.TTL})
			if err != nil {
				t.Fatal(err)
			}
			set := func(n int) time.Time {
				if err := operator.SetCapacity(t.Context(), n); err != nil {
					t.Fatal(err)
				}
				return time.Now()
			}
			at := set(lowered)
			drained := seen.await(t, at, even(lowered))
			t.Logf("drained from %d to %d in %v", capacity, lowered, drained.Sub(at))
			for _, n := range []int{lowered / 2 * 3, capacity} {
				at = set(n)
				t.Logf("raised to %d in %v", n, seen.await(t, at, even(n)).Sub(at))
			}
			// The capacity is below the number of processes: they rotate.
			at = set(2)
			few := seen.await(t, at, func(held shares) bool { return held.total() <= 2 })
			t.Logf("drained to 2 in %v", few.Sub(at))
			if err := operator.Close(); err != nil {
				t.Error(err)
			}
			fleet.stop(t)
			if peak := seen.mostAtOnce(); peak > capacity {
				t.Errorf("%d backends, capacity %d", peak, capacity)
			}
			s.nothingLeft(t, t.Name())
		})
	}
}
