package core

import (
	"regexp"
	"testing"
)

// A permit's UUID names its session and its pool. It is of version 8, and never occurs twice, even
// if a pool's number does.
func TestUUIDsNameTheirSessionAndPool(t *testing.T) {
	s := start(t, Config{})
	version8 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$`)
	p := s.pool()
	seen := make(map[string]bool)
	check := func(id, owner string) {
		t.Helper()
		if !version8.MatchString(id) || id[:23] != owner || seen[id] {
			t.Errorf("the UUID %s of %s is malformed, names another owner, or occurs twice (%v)",
				id, owner, seen[id])
		}
		seen[id] = true
	}
	for range 100 {
		check(s.NewPermit().ID, s.cfg.Session+"-8000")
		check(s.newPermit(&p.Pool).ID, s.cfg.Session+"-8001")
	}
	s.removePool(&p.Pool)
	q := s.pool()
	if check(s.newPermit(&q.Pool).ID, s.cfg.Session+"-8001"); q.number != 1 {
		t.Errorf("bug in the test: the pool has the number %d, want 1", q.number)
	}
	s.numbers = maxPools - 1
	last := s.pool()
	check(s.newPermit(&last.Pool).ID, s.cfg.Session+"-8fff")
	if s.HasNumber() || s.Join(new(Pool)) || s.PoolRequest(new(Pool)) != nil {
		t.Error("a pool gets a number beyond the last that a UUID has room for")
	}
}

// The weight is in the session's name, where the scripts read it.
func TestTheWeightIsInTheName(t *testing.T) {
	random := [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for weight, want := range map[int]string{
		1: "00010203-0405-8017", 100: "00010203-0405-8647", 255: "00010203-0405-8ff7",
	} {
		if got := SessionName(random, weight); got != want {
			t.Errorf("the session of weight %d is named %s, want %s", weight, got, want)
		}
	}
}
