package redisscript

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/core"
	"github.com/passbuddy/passbuddy/internal/message"
)

// The specification: what holds whatever happens to messages, processes, clocks and Redis. Each
// property has a name, and a function that fails the history if the property does not hold.
//
// Of the fleet, after each script:
//
//	capacity  sessions hold no more than the capacity, as Redis counts and as they believe
//	lease     a lease ends by time, or because its holder says so
//	backend   no permit is free while its backend lives
//	turns     first come, first served
//	served    no script leaves room for the head of the queue
//	counts    what Redis counts of pools and minima is right
//	recalls   no pool is told to give what nobody needs, or what it may keep
//	paused    nothing is granted while an operator's pause lasts
//	evicted   what an operator takes back is owed; or it is counted, and no session's any more, and
//	          its holder stops using it once it can hear of that
//	epoch     no two states have one epoch
//	back      after a loss, a session is back only once it knows the state: see trust
//
// Of each session, after anything happens to it:
//
//	trust     Redis counts what a session trusts, until after the trust ends
//	account   a session accounts for each permit that Redis counts for it
//	loss      a lease is lost when its trust ends, and not before, while Redis answers in time
//	settled   a request ends once, and its permits are held if it was granted; a release ends, too
//	returned  a session gives back only what its holder has given back
//	order     requests reach Redis in the order in which they were made
//	prompt    a session says at once what is to be said, and repeats it until Redis answers
//	heard     a pool hears of each recall once, and owes nothing to a state that is lost; no late
//	          answer undoes what a session knows
//	numbers   a session counts its permits right, and never exceeds Config.Max
//
// At the end, when nothing goes wrong any more:
//
//	rest      no pool waits for what another one has too much of
//	waiters   everyone that waits is granted, once the others give back
//	leak      Redis counts what sessions hold, and nothing of sessions that have left
//
// model_evidence_test.go has the sums and the exceptions. The oracle says what each script does in
// detail.

// Of the fleet.

// checkEpoch: each state has an epoch of its own, although a call that starts one can be executed
// twice. Otherwise those sessions would not re-assert what they hold that knew the first state.
func (t *trial) checkEpoch(before, after *state, a act) {
	epoch := after.Meta["epoch"]
	if epoch == "" || epoch == before.Meta["epoch"] {
		return
	}
	if t.epochs[epoch] {
		t.failf("epoch: %s starts a state, and another one had the epoch %q", a.name, epoch)
	}
	t.epochs[epoch] = true
}

// checkBack: a session that counts as back after a loss knows the state. So what it trusts is
// counted: see checkTrust.
func (t *trial) checkBack(after *state, a act) {
	epoch := after.Meta["epoch"]
	for name := range after.Info {
		if s := t.named(name); s != nil && epoch != "" && s.core.Epoch() != epoch {
			t.failf("back: after %s %s is among those that know the state %q, and it knows %q",
				a.name, name, epoch, s.core.Epoch())
		}
	}
}

// checkLease: no script ends a lease that has time left, unless it is told to release the permit.
func (t *trial) checkLease(before, after *state, a act) {
	for id, expiry := range before.Permits {
		_, held := after.Permits[id]
		if !held && expiry > a.now && !slices.Contains(a.released, id) {
			t.failf("lease: %s ended the lease of %s, which had %d ms left",
				a.name, id, expiry-a.now)
		}
	}
}

// checkCapacity: a script that grants leaves no more in use than the capacity.
func (t *trial) checkCapacity(after *state, a act) {
	capacity, inUse := int(after.num("cap")), t.inUse(after)
	switch {
	case len(a.granted) == 0:
	case len(after.Permits) > capacity:
		t.failf("capacity: %s granted %q: %d are held of %d", a.name, a.granted,
			len(after.Permits), capacity)
	case len(inUse) > capacity && !t.inWindow():
		t.failf("capacity: %s granted %q: %d are in use of %d: %q", a.name, a.granted,
			len(inUse), capacity, keysInOrder(inUse))
	}
}

// checkBelief: at every moment sessions believe that they hold no more than the capacity.
func (t *trial) checkBelief() {
	if believed := t.believed(); len(believed) > t.allowed && !t.inWindow() {
		t.failf("capacity: sessions believe in %d permits, %d may be held: %q",
			len(believed), t.allowed, keysInOrder(believed))
	}
}

// checkKept: a script grants nothing of what is kept for minima of sessions that live. A heartbeat
// is excepted that has a minimum accepted, or says that a pool owes more: it keeps more than before.
func (t *trial) checkKept(before, after *state, a act) {
	held := func(s *state) int64 {
		n := int64(len(s.Permits))
		for session := range s.minima() {
			if s.isLive(session, a.now) {
				n += max(0, s.lacks(session))
			}
		}
		return n
	}
	keepsMore := !maps.Equal(before.minima(), after.minima()) ||
		a.counts && after.owed() > before.owed()
	if now := held(after); len(a.granted) > 0 && now > after.num("cap") && now > held(before) &&
		!keepsMore && !t.damaged {
		t.failf("capacity: %s granted %q of what is kept for minima: %d are held or kept of %d",
			a.name, a.granted, now, after.num("cap"))
	}
}

// checkBackends: no script frees a permit whose recorded backend lives, before its lease or its
// time in quarantine is over. A look frees none whose backend lives, recorded or not.
func (t *trial) checkBackends(before, after *state, a act) {
	for id, b := range t.postgres {
		expiry, was := before.Permits[id]
		_, is := after.Permits[id]
		if was && !is && expiry > a.now && (b.recorded || a.name == "Gone") {
			t.failf("backend: %s freed %s, and its backend %s lives", a.name, id, b.tag)
		}
	}
}

// checkTurns: among requests of equal rank no script grants one that came later, whoever made it
// and for however many permits.
func (t *trial) checkTurns(before, after *state, a act) {
	ordinary := func(id string) bool {
		_, has := before.Reserves["min "+sessionOf(id)]
		return !isPooled(id) && !has
	}
	place := make(map[string]int64)
	for request, score := range before.Queue {
		_, ids := parsed(request)
		for _, id := range ids {
			place[id] = score
		}
	}
	for request, score := range before.Queue {
		_, ids := parsed(request)
		if _, waits := after.Queue[request]; !waits || !ordinary(ids[0]) ||
			!before.isLive(sessionOf(ids[0]), a.now) || score/oracleRank != oracleLevels {
			continue
		}
		for _, id := range a.granted {
			if turn, queued := place[id]; ordinary(id) && (!queued || turn > score) {
				t.failf("turns: %s granted %s, and passed %q, which waited before it",
					a.name, id, request)
			}
		}
	}
}

// checkServed: when a script ends, the request at the head of the queue does not fit. A pool's
// request may wait for the end of the calm.
func (t *trial) checkServed(s *state, a act) {
	queue := s.queued()
	if len(queue) == 0 || t.damaged {
		return
	}
	_, ids := parsed(queue[0])
	n, session, room := int64(len(ids)), sessionOf(ids[0]), s.num("cap")-s.live(a.now)
	if s.waitsForCalm(ids[0], a.now) || room <= 0 {
		return
	}
	if !s.isLive(session, a.now) {
		t.failf("served: %s left a request of a dead session at the head, and %d are free",
			a.name, room)
	}
	if n > room {
		return
	}
	lacks := int64(0)
	if _, has := s.minima()[session]; has {
		lacks = max(0, s.lacks(session))
	}
	// A permit that has expired is free, but still counts towards the minimum of its session.
	exact := len(s.Permits) == int(s.live(a.now))
	if len(s.Reserves) == 0 || exact && n <= lacks+max(0, room-s.kept()) {
		t.failf("served: %s left %q at the head of the queue: %d are free", a.name, queue[0], room)
	}
}

// checkCounts: Redis counts the permits of pools, what they owe, and what minima lack. A heartbeat
// that crossed a grant or a release may say what was; the next one corrects it.
func (t *trial) checkCounts(s *state, a act) {
	if s.Meta["epoch"] == "" {
		return
	}
	counts := s.heldByPool()
	maps.DeleteFunc(t.miscounted, func(pool string, _ time.Duration) bool {
		n, known := counts[pool]
		return !known || s.Held[pool] == n
	})
	for pool, n := range counts {
		debt := s.Debts[pool]
		_, gives := s.Levels[pool]
		_, wrong := t.miscounted[pool]
		switch {
		case s.Held[pool] == n || wrong:
		case a.counts || t.damaged:
			t.miscounted[pool], wrong = t.now, true
		default:
			t.failf("counts: %s: %s is said to hold %d, and holds %d", a.name, pool, s.Held[pool], n)
		}
		if !t.damaged && !wrong && (debt > n || gives != (debt < n)) {
			t.failf("counts: %s: %s holds %d and owes %d; is among those that can give: %v",
				a.name, pool, n, debt, gives)
		}
	}
	if t.damaged {
		return
	}
	for _, id := range idsOf(keysInOrder(s.Queue)) {
		if _, held := s.Permits[id]; held {
			t.failf("counts: %s: %s is held, and waits", a.name, id)
		}
	}
	// Other clients remove expired permits. A count that is corrected then takes their permits for
	// ours.
	if n := s.ours(); s.num("count") < n || s.num("count") > n+int64(t.foreign) {
		t.failf("counts: %s: count is %d, there are %d", a.name, s.num("count"), n)
	}
	for session := range s.minima() {
		if n := s.Reserves["free "+session]; n != s.lacks(session) {
			t.failf("counts: %s: %s is said to lack %d, and lacks %d", a.name, session, n,
				s.lacks(session))
		}
	}
	_, any := s.Meta["reserve"]
	if any != (len(s.minima()) > 0) || s.num("reserve") != s.kept() {
		t.failf("counts: %s: reserve is %q, the sum is %d", a.name, s.Meta["reserve"], s.kept())
	}
}

// checkReport: a call of the heartbeat reports each pool of which Redis counts too much. If Redis
// counts too little for a pool that is not reported, a call has said that the pool holds nothing,
// and crossed a grant that nobody wants any more. The pool holds none of it: see checkNumbers. Its
// session drops it, or knows nothing of it, and then nobody renews it: see checkAccount. So it is
// free within a lease. Until then the count only says which pools are asked to give, and this one
// has nothing to give. checkCounts at the end of a history shows that no such count stays.
func (t *trial) checkReport(s *session, pools []message.PoolReport) {
	counts := t.before.heldByPool()
	for pool, since := range t.miscounted {
		if t.before.Held[pool] <= counts[pool] {
			continue
		}
		reports := func(r message.PoolReport) bool { return r.Name == pool }
		if sessionOf(pool) == s.name && since < t.now && !t.damaged &&
			s.core.Epoch() == t.epochNow() && !slices.ContainsFunc(pools, reports) {
			t.failf("counts: %s is said to hold %d, and its session does not report it any more",
				pool, t.before.Held[pool])
		}
	}
}

// checkRecalls: a script recalls no more than the queue wants, and nothing that is kept for the
// holder's minimum. It recalls nothing for a pool that owes: that pool holds what it owes. See also
// checkDrain and checkEvicted.
func (t *trial) checkRecalls(before, s *state, a act) {
	// An operator takes back what is kept for minima, too.
	recalls, all := a.promised, s.drains(a.now) || a.evicted != ""
	for _, p := range a.pushes {
		if strings.HasPrefix(p.text, "b ") {
			recalls++
			pool := strings.Fields(p.text)[2]
			gives := before.Meta["epoch"] != s.Meta["epoch"] ||
				s.Recalls["+"+pool] > before.Recalls["+"+pool]
			if _, has := s.minima()[p.session]; has && gives && !all && !t.damaged &&
				s.lacks(p.session) > 0 {
				t.failf("recalls: %s: %s is to give what is kept for it", a.name, p.session)
			}
		}
	}
	if recalls == 0 {
		return
	}
	promised := int64(len(s.Promises))
	wanted := s.wanted(func(string) bool { return true })
	if promised > wanted && len(s.Promises) > len(before.Promises) {
		t.failf("recalls: %s: %d permits are promised, %d are wanted", a.name, promised, wanted)
	}
	needed := s.wanted(func(pool string) bool {
		return before.Debts[pool] == 0 || s.Debts[pool] == 0
	})
	// Permits beyond the capacity are taken back first. While grants are paused, promises stay as
	// they are.
	// A pool that is evicted owes from now on; what it was promised is withdrawn by the next script.
	over := len(s.Permits) > int(s.num("cap"))
	paused := s.pausedByOperator(a.now) || s.num("gate") > a.now
	if promised > needed && !over && !paused && !t.damaged && a.evicted == "" {
		t.failf("recalls: %s: %d permits are promised, pools that owe nothing want %d",
			a.name, promised, needed)
	}
}

// At the end.

// checkRest: when nothing moves any more, no pool waits while another one could give a permit and
// still hold no less, for its weight, than the waiter would hold then. By then all pools have given
// what they owe, so they have heard of each recall.
func (t *trial) checkRest() {
	s := t.before
	o := begin(s, t.clock(), 0, t.place.sharded(), nil)
	for pool, n := range s.Debts {
		if s.isLive(sessionOf(pool), o.now) {
			t.failf("rest: %s owes %d, and does not give it", pool, n)
		}
	}
	for _, request := range s.queued() {
		_, ids := parsed(request)
		if !isPooled(ids[0]) {
			return // it counts as one of a pool that holds nothing; those before it had no claim
		}
		waiter := poolOf(ids[0])
		if !s.isLive(sessionOf(waiter), o.now) {
			continue
		}
		for holder := range s.Levels {
			lacks, hasMin := o.minLacks(sessionOf(holder))
			if holder == waiter || hasMin && lacks >= 0 || !s.isLive(sessionOf(holder), o.now) {
				continue
			}
			gives, has := o.keptBy(holder), o.keptBy(waiter)
			if (gives-1)*weightOf(waiter) >= (has+1)*weightOf(holder) {
				t.failf("rest: %s holds %d, and %s, which waits, %d", holder, gives, waiter, has)
			}
		}
	}
}

// checkWaiters: once every session gives back what it holds, no request waits any more. Excepted is
// a request for more than the minima of others leave. It does not stop those behind it in the
// queue.
func (t *trial) checkWaiters() {
	for _, s := range t.all() {
		for _, r := range s.requests {
			if r.Kind.Waits() && !t.keptFromIt(s, r) {
				t.failf("waiters: %s waits for %s, and every session gives back",
					s.name, ids(r.Permits))
			}
		}
	}
}

// checkLeak: Redis counts for a session what it holds, and no release is left unsaid. all: every
// session has given back all that it held.
func (t *trial) checkLeak(all bool) {
	for _, s := range t.all() {
		t.checkAccount(s)
		for _, d := range s.dropping {
			if s.core.Accounts(d.id) {
				t.failf("leak: %s has not said of %s that it is released", s.name, d.id)
			}
		}
		if all && s.core.Held() > 0 {
			t.failf("leak: %s holds %d permits, and has given all back", s.name, s.core.Held())
		}
	}
	for id := range t.before.Permits {
		s := t.named(sessionOf(id))
		if s == nil || t.before.inQuarantine(id) || t.ends[id] <= t.now {
			continue
		}
		if p := s.permitOf(id); p == nil || p.State() != core.Held {
			t.failf("leak: Redis counts %s, which %s does not hold", id, s.name)
		}
	}
}

// checkLeft: Redis counts nothing of what a session accounted for when it left.
func (t *trial) checkLeft(s *session, accountedFor []string) {
	for _, id := range accountedFor {
		if t.before.counts(id) && !t.excused[id] {
			t.failf("leak: %s has left, and Redis counts %s", s.name, id)
		}
	}
}

// checkEmpty: when all sessions are gone, Redis keeps nothing but meta, and that counts nothing.
func (t *trial) checkEmpty() {
	left := t.before.clone()
	left.Meta = nil
	if d := left.diff(&state{}); d != "" {
		t.failf("leak: left when no session is there:\n%s", d)
	}
	if t.before.num("count") != 0 || t.before.num("reserve") != 0 {
		t.failf("leak: left when no session is there: %v", t.before.Meta)
	}
}
