package redisscript

// The end of a trial: everything returns.

func (t *trial) must(err error) {
	if err != nil {
		t.failf("bug in the test: %v", err)
	}
}

// finish brings a history to its end: all are reached again, what is owed is paid, and then all leave or die.
func (t *trial) finish() {
	t.say("-- the end: all can be reached")
	for _, s := range t.strays {
		t.strayArrives(s)
	}
	t.strays, t.ended = nil, true
	for _, p := range t.peers {
		if p != nil {
			t.heal(p, true)
			t.listenAgain(p)
		}
	}
	for range 7 { // more than two leases
		t.rest()
		t.advance(t.plan.ttl / 3)
	}
	t.rest()
	// By now every count has been put right, whatever happened.
	t.damaged = false
	clear(t.adrift)
	for sharer := range t.before.sharers() {
		if !t.before.isLive(sessionOf(sharer), t.clock()-t.before.num("skew")) {
			t.adrift[sharer] = true // until the next heartbeat of anybody
		}
	}
	t.checkCounts(t.before, act{name: "the end"})
	t.checkAtRest()

	t.say("-- all leave, or die")
	for slot, p := range t.peers {
		switch {
		case p == nil:
		case slot%2 == 0:
			t.leaves(slot, arrives)
		default:
			t.crash(slot, true)
		}
	}
	t.advance(3*t.plan.ttl + 2000)
	t.join(0, t.plan.capacity, 0, 1, 0, 0)
	t.advance(2 * t.plan.ttl)
	t.leaves(0, arrives)
	if len(t.before.Quarantine) > 0 {
		t.say("-- an hour passes")
		t.now += oracleAsked + 1
		t.join(0, t.plan.capacity, 0, 1, 0, 0)
		t.leaves(0, arrives)
	}
	left := t.before.clone()
	left.Meta = nil
	if d := left.diff(&state{}); d != "" {
		t.failf("left behind when nobody is there:\n%s", d)
	}
	if t.before.num("count") != 0 || t.before.num("reserve") != 0 {
		t.failf("left behind when nobody is there: %v", t.before.Meta)
	}
}

// rest lets all pay and hear until nothing moves.
func (t *trial) rest() {
	for range 100 {
		moved := false
		for _, p := range t.peers {
			if p == nil {
				continue
			}
			calls := t.calls
			t.landPulse(p)
			t.land(p)
			t.hear(p)
			t.pay(p, arrives)
			moved = moved || t.calls > calls
		}
		if !moved {
			return
		}
	}
	t.failf("permits move for ever")
}

// checkAtRest: when nothing moves any more, nobody who waits has a claim to what another holds.
func (t *trial) checkAtRest() {
	s := t.before
	o := begin(s, t.clock(), 0, t.place.sharded(), nil)
	for _, request := range s.line() {
		_, ids := parsed(request)
		if !isShared(ids[0]) {
			return // it cannot be told apart from one that holds nothing; those before it had no claim
		}
		if !s.isLive(sessionOf(ids[0]), o.now) {
			continue
		}
		waiter := sharerOf(ids[0])
		for holder := range s.Shares {
			gives, has := o.share(holder), o.share(waiter)
			if lacks, ok := o.lacking(sessionOf(holder)); holder == waiter || ok && lacks >= 0 || !s.isLive(sessionOf(holder), o.now) {
				continue
			}
			// After it gave one it would still have no less for its weight than the waiter with one more.
			if (gives-1)*weightOf(waiter) >= (has+1)*weightOf(holder) {
				t.failf("at rest, %s holds %d, and %s, which waits, %d", holder, gives, waiter, has)
			}
		}
	}
}
