package integration

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/passbuddy/passbuddy/internal/subset"
	"github.com/passbuddy/passbuddy/semaphore"
)

// The settings of a session's Config that shape its share, tested on common servers.
func TestSharesAsConfigured(t *testing.T) {
	s := startServers(t, 100)
	for _, setting := range subset.Of(t, 1, []string{"Weight", "Min", "Max"}) {
		t.Run(setting, map[string]func(*testing.T){
			"Weight": s.testWeight, "Min": s.testMin, "Max": s.testMax,
		}[setting])
	}
	t.Run("MinimaAboveCapacity", s.testMinimaAboveCapacity)
}

// Saturated processes share by weight, whichever joined first, and then no permit moves.
func (s *servers) testWeight(t *testing.T) {
	const capacity = 20
	type weighted struct {
		name    string
		weights []int // in the order in which they join
		want    shares
	}
	for _, tt := range subset.Of(t, 1, []weighted{
		{"batch-first", []int{1, 3}, shares{"p00": 5, "p01": 15}},
		{"three", []int{1, 3, 1}, shares{"p00": 4, "p01": 12, "p02": 4}},
	}) {
		t.Run(tt.name, func(t *testing.T) {
			seen, fleet := s.ledger(t), make(named)
			j := saturating("pgxpool", t.Name(), capacity)
			var joined time.Time
			for _, weight := range tt.weights {
				if !joined.IsZero() { // The earlier processes hold the whole capacity.
					seen.await(t, joined, func(held shares) bool {
						return held.total() == capacity
					})
				}
				j.Weight = weight
				joined = s.run(t, fleet, 1, j)
			}
			settled := seen.await(t, joined, func(held shares) bool {
				return maps.Equal(held, tt.want)
			})
			connects, rest := seen.rests(settled, *loadFor, handful)
			t.Logf("%v after %v, then %d connects in %v", tt.want, settled.Sub(joined), connects,
				*loadFor)
			if !rest {
				t.Errorf("%d connects long after the shares were settled, want at most %d", connects,
					handful)
			}
			fleet.stop(t)
			if peak := seen.mostAtOnce(); peak > capacity {
				t.Errorf("%d backends, capacity %d", peak, capacity)
			}
		})
	}
}

// A session with a minimum gets that many permits though its even share is less. It keeps them when
// they are idle while all others wait.
func (s *servers) testMin(t *testing.T) {
	const holders, capacity, least = 7, 20, 4
	seen, fleet := s.ledger(t), make(named)
	j := saturating("pgxpool", t.Name(), capacity)
	began := time.Now()
	s.run(t, fleet, holders, j)
	seen.await(t, began, func(held shares) bool { return held.even(capacity, holders) })

	// Its goroutines use all of it for a second, and then nothing for a second.
	j.Min, j.Goroutines = least, least
	j.MinQuery, j.MaxQuery, j.Pause = time.Second, time.Second, time.Second
	joined := s.run(t, fleet, 1, j)
	full := seen.await(t, joined, func(held shares) bool { return held["p07"] == least })
	t.Logf("%d permits after %v", least, full.Sub(joined))
	time.Sleep(*loadFor + j.Pause + j.MaxQuery)
	if low := seen.fewest("p07", full); low < least {
		t.Errorf("its idle permits were taken: it held %d, its minimum is %d", low, least)
	}
	for name, o := range fleet.stop(t) {
		if o.Ops == 0 {
			t.Errorf("process %s made no operation", name)
		}
	}
	if peak := seen.mostAtOnce(); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
}

// A session with a maximum never holds more, alone or beside others. The others get the permits
// that it may not use.
func (s *servers) testMax(t *testing.T) {
	const capacity, most = 20, 3
	seen, fleet := s.ledger(t), make(named)
	j := saturating("pgxpool", t.Name(), capacity)
	j.Max = most
	began := time.Now()
	s.run(t, fleet, 1, j)
	seen.await(t, began, func(held shares) bool { return held["p00"] == most })
	time.Sleep(*loadFor / 2)
	j.Max = 0
	joined := s.run(t, fleet, 1, j)
	seen.await(t, joined, func(held shares) bool {
		return maps.Equal(held, shares{"p00": most, "p01": capacity - most})
	})
	time.Sleep(*loadFor / 2)
	if held := seen.most("p00"); held > most {
		t.Errorf("it held %d permits, its maximum is %d", held, most)
	}
	fleet.stop(t)
	if peak := seen.mostAtOnce(); peak > capacity {
		t.Errorf("%d backends, capacity %d", peak, capacity)
	}
}

// A session whose minimum does not fit beside the others' is refused when it joins. The room is
// there again when another session has left.
func (s *servers) testMinimaAboveCapacity(t *testing.T) {
	open := func(least int) (*semaphore.Semaphore, error) {
		return semaphore.Open(t.Context(), s.redis.URL(), semaphore.Config{Name: t.Name(),
			Capacity: 10, Min: least})
	}
	first, err := open(6)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := open(5); !errors.Is(err, semaphore.ErrCapacity) {
		t.Errorf("6 and 5 of 10: %v, want ErrCapacity", err)
		if err == nil {
			_ = second.Close()
		}
	}
	third, err := open(4)
	if err != nil {
		t.Fatalf("6 and 4 of 10: %v", err)
	}
	defer third.Close()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	fourth, err := open(5)
	if err != nil {
		t.Fatalf("4 and 5 of 10: %v", err)
	}
	defer fourth.Close()
}
