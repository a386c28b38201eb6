package core

import (
	"regexp"
	"testing"
)

// A permit's UUID says what it is of: the session, and the pool. It is a UUID of version 8, and
// none comes twice, also if a pool's number does.
func TestUUIDsSayWhatTheyAreOf(t *testing.T) {
	s := start(t, Config{})
	version8 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}$`)
	p := s.pool()
	seen := make(map[string]bool)
	check := func(id, owner string) {
		t.Helper()
		if !version8.MatchString(id) || id[:23] != owner || seen[id] {
			t.Errorf("%s, of %s; it came before: %v", id, owner, seen[id])
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
		t.Errorf("bug in the test: it has the number %d", q.number)
	}
	s.numbers = maxPools - 1
	last := s.pool()
	check(s.newPermit(&last.Pool).ID, s.cfg.Session+"-8fff")
	if s.HasNumber() || s.Join(new(Pool)) || s.PoolRequest(new(Pool)) != nil {
		t.Error("there are more numbers than the UUID has room for")
	}
}

// The weight is in the session's name, where the scripts read it.
func TestTheWeightIsInTheName(t *testing.T) {
	random := [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for weight, want := range map[int]string{
		1: "00010203-0405-8017", 100: "00010203-0405-8647", 255: "00010203-0405-8ff7",
	} {
		if got := SessionName(random, weight); got != want {
			t.Errorf("weight %d: %s, want %s", weight, got, want)
		}
	}
}
