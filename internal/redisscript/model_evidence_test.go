package redisscript

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The evidence for the specification: notes of what happened, the exceptions that follow from them,
// and sums.

// The evidence of a trial. The maps by pool go by their names.
type evidence struct {
	allowed     int                      // permits that may be held at present
	ends        map[string]time.Duration // when each lease ends, if Redis's clock runs on evenly
	lastSet     int64                    // by how much the clock was set when a script last looked,
	lastScript  time.Duration            // ... when that was,
	lastClock   int64                    // ... and what the script saw
	recalled    map[tallied]int64        // recalls that Redis made,
	withdrawn   map[tallied]int64        // ... or withdrew
	toldOf      map[tallied]int64        // recalls that pools were told of,
	toldToKeep  map[tallied]int64        // ... and withdrawals
	excused     map[string]bool          // UUIDs that Redis may count without their session knowing
	miscounted  map[string]time.Duration // pools whose count waits for a heartbeat, since when
	lossesUntil time.Duration            // a grant of a lost state may be trusted until then
	// unnoticed: the clock was set while no session was there that could tell. See state.lua.
	unnoticed bool
	damaged   bool                     // a key was deleted: counts may be wrong until they are settled
	revoked   map[string]bool          // permits that were removed by hand, and their holders do not know
	tampered  bool                     // one was, ever
	byHand    map[string]bool          // those that were, ever
	evicted   map[string]bool          // permits that an operator revoked, and their holders do not know
	evictedAt map[string]time.Duration // those that were revoked ever, of subscribed sessions, when
	epochs    map[string]bool          // of the states that there ever were
	present   []present                // how many sessions there were, from the first script on
	revokedIn map[string]string        // both of these, ever: the epoch of the state that counted them
	seenGone  map[string]bool          // permits in quarantine whose backends a session has ended
}

func newEvidence() evidence {
	return evidence{
		ends:       make(map[string]time.Duration),
		recalled:   make(map[tallied]int64),
		withdrawn:  make(map[tallied]int64),
		toldOf:     make(map[tallied]int64),
		toldToKeep: make(map[tallied]int64),
		excused:    make(map[string]bool),
		miscounted: make(map[string]time.Duration), byHand: make(map[string]bool),
		revoked:   make(map[string]bool),
		evicted:   make(map[string]bool),
		evictedAt: make(map[string]time.Duration),
		epochs:    make(map[string]bool),
		revokedIn: make(map[string]string),
		seenGone:  make(map[string]bool),
	}
}

// What is tallied of recalls is that to one pool, in the state of one epoch. Pools go by the names
// that Redis knows.
type tallied struct{ epoch, pool string }

// An act is one run of a script.
type act struct {
	name     string
	session  string
	now      int64 // as the script saw it
	timeless bool  // it did not look, or could not tell whether the clock was set
	released []string
	asserted []string // UUIDs that its session says it holds
	granted  []string // UUIDs that are held since, and were not asserted
	served   bool     // it was not refused, and grants were not paused: it had to serve the queue
	counts   bool     // it replaced counts by what its session says
	pushes   []push
	promised int64 // recalls from the pool that offered, if some of its offer is needed
	// Of an operator's pause: ends: it may end or replace one. knowsPause: the session found the
	// state lost, and knows this one.
	ends       bool
	knowsPause string
	evicted    string // the session whose permits an operator takes back
	// reports are what its session says of its pools, in the state of that epoch.
	reports []message.PoolReport
	epoch   string
}

// checkScript checks the specification after a script.
func (t *trial) checkScript(before, after *state, a act) {
	for id := range after.Permits {
		if _, held := before.Permits[id]; !held && !slices.Contains(a.asserted, id) {
			a.granted = append(a.granted, id)
		}
	}
	slices.Sort(a.granted)
	t.present = append(t.present, present{t.now, int64(len(after.Sessions))})
	t.checkEpoch(before, after, a)
	t.checkBack(after, a)
	t.checkLease(before, after, a)
	t.checkBackends(before, after, a)
	t.allow(after)
	t.checkCapacity(after, a)
	t.checkKept(before, after, a)
	t.checkTurns(before, after, a)
	if a.served {
		t.checkServed(after, a)
	}
	t.checkCounts(after, a)
	t.checkRecalls(before, after, a)
	t.checkPaused(before, after, a)
	t.checkDrain(before, after, a)
	t.checkEvicted(before, after, a)
	for field, n := range after.Recalls {
		pool, more := field[1:], n-before.Recalls[field]
		if field[0] == '+' {
			t.recalled[tallied{after.Meta["epoch"], pool}] += max(0, more)
		} else {
			t.withdrawn[tallied{after.Meta["epoch"], pool}] += max(0, more)
		}
	}
}

// checkNow checks the specification of the sessions, after anything happened.
func (t *trial) checkNow() {
	t.leaveIfReturned()
	t.checkBelief()
	for _, s := range t.all() {
		t.checkTrust(s)
		t.checkAccount(s)
		t.checkExpiry(s)
		t.checkNumbers(s)
		t.checkRecord(s)
		s.forgetReleased()
	}
}

// inWindow reports whether this is a history in which more than the capacity can be held for a
// while. docs/SAFETY.md lists the windows.
func (t *trial) inWindow() bool {
	return t.plan.windows || t.unnoticed || t.tampered
}

// believes reports whether a session may use what p permits. It trusts the lease. And if a recorded
// backend has ended, it has recorded that there is none: before that, it opens no other one.
func (t *trial) believes(s *session, p *permit) bool {
	lives := t.postgres[p.ID] != nil
	return s.local(t.now) < p.TrustedUntil() && (lives || !p.covered || p.vacated)
}

// believed are the permits that sessions may use.
func (t *trial) believed() map[string]bool {
	out := make(map[string]bool)
	for _, s := range t.all() {
		for _, p := range s.permits {
			if t.believes(s, p) {
				out[p.ID] = true
			}
		}
	}
	return out
}

// inUse are the permits that Redis counts, that a session may use, or whose recorded backend lives.
// A backend in quarantine is counted, or its bound has passed.
func (t *trial) inUse(after *state) map[string]bool {
	all := t.believed()
	for id := range after.Permits {
		all[id] = true
	}
	for id, b := range t.postgres {
		if b.recorded && !after.inQuarantine(id) {
			all[id] = true
		}
	}
	return all
}

// allow notes how many permits may be held. When the capacity is lowered, what is held may stay
// held, and the number cannot grow. For a lease after a loss, grants of the lost state may arrive.
func (t *trial) allow(after *state) {
	allowed := max(int(after.num("cap")), min(t.allowed, len(t.inUse(after))))
	if t.now >= t.lossesUntil || allowed > t.allowed {
		t.allowed = allowed
	}
}

// scriptClock returns the time that a script would go by, if it ran now.
func (t *trial) scriptClock() int64 { return t.lastClock + (t.now - t.lastScript).Milliseconds() }

// epochNow is the epoch of the state in Redis, "" if the next script finds that state lost.
func (t *trial) epochNow() string {
	if len(t.before.Permits) == 0 && t.before.num("count") > 1 { // the set was deleted
		return ""
	}
	return t.before.Meta["epoch"]
}

// knows reports whether a session accounts for a UUID. Excused are requests that reached Redis
// after their session had given them up, and drops that failed for a whole lease.
func (t *trial) knows(s *session, id string) bool {
	ended, is := s.ended[id]
	return t.excused[id] || s.core.Accounts(id) || is && s.local(t.now)-s.local(ended) >= t.plan.ttl
}

// revokedBeforeLoss reports whether a permit was revoked in the state that its session knows, and
// that state is lost.
func (t *trial) revokedBeforeLoss(s *session, id string) bool {
	epoch, revoked := t.revokedIn[id]
	return revoked && epoch == s.core.Epoch() && epoch != t.epochNow()
}

// quiet is for how long nothing has gone wrong for a session.
func (t *trial) quiet(s *session) time.Duration { return t.now - max(s.troubleAt, t.stalledUntil) }

// survivesMishaps reports whether a lease must survive the faults of its session. That is so if for
// three leases there was none but two messages that were lost or late. And there was time to repeat
// them: the grant was not too late, and a round trip is short.
func (t *trial) survivesMishaps(s *session, p *permit) bool {
	since, mishaps := t.now-3*t.plan.ttl, 0
	for _, at := range s.mishaps {
		if at > since {
			mishaps++
		}
	}
	return !s.cut && mishaps <= 2 && max(s.disturbedAt, t.stalledUntil) <= since &&
		p.heldWith >= t.plan.ttl*2/5 && t.plan.roundTrip <= t.plan.ttl/20
}

// checkAllPrompt checks the sessions that can reach Redis.
func (t *trial) checkAllPrompt() {
	for _, s := range t.all() {
		if s.paused || s.cut || s.leaves || s.travelling > 0 || t.now < t.stalledUntil {
			continue
		}
		trouble := 0
		if since := max(s.troubleAt, t.stalledUntil); since > 0 && t.now-since <= t.repeats() {
			trouble = s.trouble
		}
		t.checkPrompt(s, trouble)
		t.checkStops(s)
		t.checkElsewhere(s)
	}
}

// keptFromIt reports whether a request wants more than the minima of others leave, or waits below
// Config.Max for room that such a request takes.
func (t *trial) keptFromIt(s *session, r *request) bool {
	kept := func(r *request) bool { return t.exceedsRoom(s, r) }
	return kept(r) || s.joining.max > 0 && slices.ContainsFunc(s.requests, kept)
}

// exceedsRoom reports whether a request wants more than the minima of others leave.
func (t *trial) exceedsRoom(s *session, r *request) bool {
	room := t.before.num("cap")
	for session, n := range t.before.minima() {
		if session != s.name {
			room -= n
		}
	}
	return int64(len(r.Permits)) > room && r.Pool == nil || room <= 0
}

// mostSessions is how many sessions there were at most since a time.
func (t *trial) mostSessions(since time.Duration) (most int64) {
	for i, p := range t.present {
		if i+1 == len(t.present) || t.present[i+1].at >= since {
			most = max(most, p.n)
		}
	}
	return most
}

// present is how many sessions there were from a time on.
type present struct {
	at time.Duration
	n  int64
}

// repeats bounds the pause after a fault, before the session repeats what was not answered.
func (t *trial) repeats() time.Duration {
	pause := min(t.plan.retry, core.MaxRetryPause)
	return pause + pause/8 + t.plan.ttl/4 + 2*maxLateness + time.Millisecond
}

// waitsForCalm reports whether a pool's request may wait for the end of the calm.
func (s *state) waitsForCalm(id string, now int64) bool {
	row := func(name string, span int64) int64 {
		return min(s.num(name)+span, s.num(name+"0")+oracleJoining)
	}
	return isPooled(id) && max(row("calm", oracleCalm), row("young", oracleYoung)) > now
}

// minima are those that were accepted, by session.
func (s *state) minima() map[string]int64 {
	all := make(map[string]int64)
	for field, n := range s.Reserves {
		if session, ok := strings.CutPrefix(field, "min "); ok {
			all[session] = n
		}
	}
	return all
}

// lacks returns what a session's minimum lacks, counted from the permits. Below zero, the session
// could give so many back.
func (s *state) lacks(session string) int64 {
	n := s.Reserves["min "+session]
	for _, id := range s.held() {
		if sessionOf(id) == session {
			n--
		}
	}
	for pool, debt := range s.Debts {
		if sessionOf(pool) == session {
			n += debt
		}
	}
	return n
}

// kept sums up what all minima lack: so many free permits are kept for their sessions.
func (s *state) kept() (sum int64) {
	for session := range s.minima() {
		sum += max(0, s.lacks(session))
	}
	return sum
}

// back is how many sessions know this state that did not join it: see may_grant in state.lua.
func (s *state) back() int64 { return int64(len(s.Info)) - s.num("news") }

// owed is how many permits were recalled, and are not given back yet.
func (s *state) owed() (sum int64) {
	for _, n := range s.Debts {
		sum += n
	}
	return sum
}

// ours counts the permits that other clients have not made.
func (s *state) ours() (n int64) {
	for id := range s.Permits {
		if isOurs(id) {
			n++
		}
	}
	return n
}

// heldByPool counts the permits of each pool of which Redis keeps a count.
func (s *state) heldByPool() map[string]int64 {
	out := make(map[string]int64)
	for pool := range maps.Keys(s.Held) {
		out[pool] = 0
	}
	for _, id := range s.held() {
		if isPooled(id) && isOurs(id) {
			out[poolOf(id)]++
		}
	}
	return out
}

// wanted sums up how many permits the queue wants, of pools only for those that are needy.
func (s *state) wanted(needy func(pool string) bool) (sum int64) {
	for request, score := range s.Queue {
		_, ids := parsed(request)
		if !isPooled(ids[0]) || needy(poolOf(ids[0])) {
			sum += wants(score)
		}
	}
	return sum
}
