package redisscript

import (
	"maps"
	"slices"
	"strings"
)

// The part of the specification that is of scripts alone.

// checkLease: a lease is ended by its holder, or by time.
func (t *trial) checkLease(before, after *state, a act) {
	for id, expiry := range before.Permits {
		if _, held := after.Permits[id]; !held && expiry > a.now && !slices.Contains(a.released, id) {
			t.failf("lease: %s revoked %s, which had %d ms left", a.name, id, expiry-a.now)
		}
	}
}

// checkTurns: among requests of equal kind, first come is first served, whoever asks and for however many.
func (t *trial) checkTurns(before, after *state, a act, granted []string) {
	ordinary := func(id string) bool {
		_, has := before.Reserves["min "+sessionOf(id)]
		return !isShared(id) && !has
	}
	waited := make(map[string]int64)
	for request, score := range before.Queue {
		_, ids := parsed(request)
		for _, id := range ids {
			waited[id] = score
		}
	}
	for request, score := range before.Queue {
		_, ids := parsed(request)
		_, waits := after.Queue[request]
		if !waits || !ordinary(ids[0]) || !before.isLive(sessionOf(ids[0]), a.now) || score/oracleRank != oracleLevels {
			continue
		}
		for _, id := range granted {
			if turn, queued := waited[id]; ordinary(id) && (!queued || turn > score) {
				t.failf("turns: %s granted %s, and passed %q, which waited before it", a.name, id, request)
			}
		}
	}
}

// checkServed: when a script ends, there is no room for the head of the queue.
func (t *trial) checkServed(s *state, a act) {
	line := s.line()
	if len(line) == 0 || t.damaged {
		return
	}
	_, ids := parsed(line[0])
	if isShared(ids[0]) && min(s.num("calm")+oracleCalm, s.num("calm0")+oracleJoining) > a.now || isShared(ids[0]) && min(s.num("young")+oracleYoung, s.num("young0")+oracleJoining) > a.now {
		return // a pool may wait for the end of the calm
	}
	n, session, room := int64(len(ids)), sessionOf(ids[0]), s.num("cap")-s.live(a.now)
	if !s.isLive(session, a.now) && room > 0 {
		t.failf("served: %s left a dead request at the head of the queue, and there is room", a.name)
	}
	lacks := int64(0)
	if _, has := s.Reserves["min "+session]; has {
		lacks = max(0, t.free(s, session))
	}
	// What has expired is not in live, but was counted against the minimum of its session: so only without it this is exact.
	if n <= room && n <= lacks+max(0, room-t.kept(s)) && len(s.Permits) == int(s.live(a.now)) || n <= room && len(s.Reserves) == 0 {
		t.failf("served: %s left %q at the head of the queue: %d are free", a.name, line[0], room)
	}
}

// checkCounts: what is counted is what there is.
func (t *trial) checkCounts(s *state, a act) {
	if s.Meta["epoch"] == "" {
		return
	}
	actual := make(map[string]int64)
	for _, id := range s.held() {
		if isShared(id) && isOurs(id) {
			actual[sharerOf(id)]++
		}
	}
	for sharer := range s.Held {
		actual[sharer] += 0
	}
	for sharer, n := range actual {
		switch {
		case s.Held[sharer] == n:
			delete(t.adrift, sharer)
		case a.counts || t.damaged:
			t.adrift[sharer] = true // a heartbeat that crossed a grant or a release; the next puts it right
		case !t.adrift[sharer]:
			t.failf("counts: %s: %s is said to hold %d, and holds %d", a.name, sharer, s.Held[sharer], n)
		}
		if t.damaged || t.adrift[sharer] {
			continue
		}
		if s.Debts[sharer] > n {
			t.failf("counts: %s: %s owes %d, and holds %d", a.name, sharer, s.Debts[sharer], n)
		}
		if _, can := s.Shares[sharer]; can != (n > s.Debts[sharer]) {
			t.failf("counts: %s: %s holds %d and owes %d, but is among those that can give: %v", a.name, sharer, n, s.Debts[sharer], can)
		}
	}
	if t.damaged {
		return
	}
	for request := range s.Queue {
		_, ids := parsed(request)
		for _, id := range ids {
			if _, held := s.Permits[id]; held {
				t.failf("counts: %s: %s is held, and waits", a.name, id)
			}
		}
	}
	// Other clients remove what has expired, too. A count that is put right then takes theirs for ours, until those are gone.
	if n := int64(len(s.Permits) - t.foreign(s)); s.num("count") < n || s.num("count") > n+int64(t.counted) {
		t.failf("counts: %s: count is %d, there are %d", a.name, s.num("count"), n)
	}
	sum, any := int64(0), false
	for field, n := range s.Reserves {
		if session, ok := strings.CutPrefix(field, "free "); ok {
			any = true
			sum += max(0, n)
			if free := t.free(s, session); free != n {
				t.failf("counts: %s: %s is said to lack %d, and lacks %d", a.name, session, n, free)
			}
		}
	}
	if _, is := s.Meta["reserve"]; is != any || s.num("reserve") != sum {
		t.failf("counts: %s: reserve is %q, the sum is %d", a.name, s.Meta["reserve"], sum)
	}
}

// checkRecalls: nobody is asked for what nobody waits for and is not too much, nor for what he may keep.
func (t *trial) checkRecalls(before, s *state, a act) {
	asked := a.promised
	for _, p := range a.pushes {
		if strings.HasPrefix(p.text, "b ") {
			asked++
			if _, has := s.Reserves["min "+p.session]; has && !t.damaged && t.free(s, p.session) > 0 {
				t.failf("recalls: %s: %s is asked for what is kept for it", a.name, p.session)
			}
		}
	}
	if asked == 0 {
		return
	}
	// What is too much is asked for and promised to nobody: promises from before may outlive those who waited.
	wanted := int64(0)
	for _, score := range s.Queue {
		wanted += wants(score)
	}
	if promised := int64(len(s.Promises)); promised > wanted && len(s.Promises) > len(before.Promises) {
		t.failf("recalls: %s: %d permits are promised, %d are wanted", a.name, promised, wanted)
	}
	t.checkNeed(before, s, a)
}

// checkNeed: nobody is asked for the sake of pools that owe, for they still hold what they owe; and a promise that nobody needs is taken back.
func (t *trial) checkNeed(before, s *state, a act) {
	if t.damaged || len(s.Permits) > int(s.num("cap")) {
		return // what is too much goes first
	}
	needed := int64(0)
	for request, score := range s.Queue {
		_, ids := parsed(request)
		if sharer := sharerOf(ids[0]); !isShared(ids[0]) || before.Debts[sharer] == 0 || s.Debts[sharer] == 0 {
			needed += wants(score)
		}
	}
	if promised := int64(len(s.Promises)); promised > needed {
		t.failf("recalls: %s: %d permits are promised, pools that owe nothing want %d", a.name, promised, needed)
	}
}

// countRecalls counts those that a script made, and took back.
func (t *trial) countRecalls(before, after *state) {
	for field, n := range after.Recalls {
		if more := n - before.Recalls[field]; more > 0 && field[0] == '+' {
			t.recalled[sessionOf(field[1:])] += more
		} else if more > 0 {
			t.withdrawn[sessionOf(field[1:])] += more
		}
	}
}

// minima are those that were accepted, by session.
func minima(s *state) map[string]int64 {
	all := maps.Clone(s.Reserves)
	maps.DeleteFunc(all, func(field string, _ int64) bool { return !strings.HasPrefix(field, "min ") })
	return all
}

// owed is how many permits were recalled, and are not given back yet.
func owed(s *state) (sum int64) {
	for _, n := range s.Debts {
		sum += n
	}
	return sum
}

// free is what a session's minimum lacks, counted from the permits themselves.
func (t *trial) free(s *state, session string) int64 {
	n := s.Reserves["min "+session]
	for _, id := range s.held() {
		if sessionOf(id) == session {
			n--
		}
	}
	for sharer, debt := range s.Debts {
		if sessionOf(sharer) == session {
			n += debt
		}
	}
	return n
}

func (t *trial) kept(s *state) (sum int64) {
	for field := range s.Reserves {
		if session, ok := strings.CutPrefix(field, "min "); ok {
			sum += max(0, t.free(s, session))
		}
	}
	return sum
}

// foreign counts permits of other clients.
func (t *trial) foreign(s *state) (n int) {
	for id := range s.Permits {
		if !isOurs(id) {
			n++
		}
	}
	return n
}
