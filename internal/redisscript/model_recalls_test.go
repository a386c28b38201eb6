package redisscript

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// The part of the oracle for recalls.lua: which pool gives a permit back, to whom, and when.

// learnMove takes what a session has measured a move to cost, in microseconds; 0 is nothing new.
func (o *oracle) learnMove(session string, cost int64) {
	if cost > 0 {
		maps.DeleteFunc(o.Moves, func(pool string, _ int64) bool {
			return sessionOf(pool) == session
		})
		known := o.readMeta("move", cost, oracleSlowest)
		smoothed := float64(known) + float64(min(cost, oracleSlowest)-known)/8
		o.setNum("move", int64(math.Floor(smoothed)))
	}
}

// promise recalls a permit. kind is "", " t" for a turn of rotation, or " o" for one that its pool
// has offered.
func (o *oracle) promise(pool string, due int64, kind string) {
	name := fmt.Sprintf("%d %s%s", o.seq(), pool, kind)
	moves := 3 * float64(o.readMeta("move", oracleMove, oracleSlowest)) / 1000
	o.Promises[name] = int64(math.Floor(float64(due+oraclePromise) + moves))
	o.owe(pool, 1)
}

// fulfilPromise ends the first promise that rests on a pool.
func (o *oracle) fulfilPromise(pool string) {
	for _, name := range byScore(o.Promises) {
		if strings.Fields(name)[1] == pool {
			delete(o.Promises, name)
			return
		}
	}
}

// withdrawPromise takes a promise back, and its recall with it.
func (o *oracle) withdrawPromise(name string) {
	fields := strings.Fields(name)
	delete(o.Promises, name)
	if o.Debts[fields[1]] == 0 {
		return
	}
	o.owe(fields[1], -1)
	if strings.HasSuffix(name, " t") {
		turn := o.readMeta("turn", 0, o.now+oracleFar)
		o.setNum("turn", max(0, turn-o.turnLength(o.capacity)))
	}
	o.pushRecalls(fields[1], 0)
}

// forgetPromises ends promises that were not kept in time.
func (o *oracle) forgetPromises() {
	maps.DeleteFunc(o.Promises, func(_ string, expiry int64) bool { return expiry <= o.now })
}

// pushRecalls tells a pool the tally of its recalls.
func (o *oracle) pushRecalls(pool string, delay int64) {
	t := o.tally(pool)
	o.push(sessionOf(pool),
		fmt.Sprintf("b %s %s %d %d %d", o.epoch, pool, t.Recalled, t.Withdrawn, delay))
}

// owe recalls n permits of a pool; below zero, it withdraws so many recalls.
func (o *oracle) owe(pool string, n int64) {
	if n > 0 {
		o.Recalls["+"+pool] += n
	} else {
		o.Recalls["-"+pool] -= n
	}
	o.add(o.Debts, pool, n)
	o.place(pool, o.Held[pool]-o.Debts[pool])
	o.adjustMin(sessionOf(pool), -n)
}

// givers lists the pools that can give a permit, the one of the highest level first.
func (o *oracle) givers() []string {
	all := byScore(o.Levels)
	slices.Reverse(all)
	return all
}

// largestHolder returns the first giver whose session stays above its minimum, or "".
func (o *oracle) largestHolder() string {
	for _, pool := range o.givers() {
		if lacks, ok := o.minLacks(sessionOf(pool)); ok && lacks >= 0 {
			continue
		}
		if o.keptBy(pool) > 0 {
			return pool
		}
		delete(o.Levels, pool) // an operator has deleted its counts
	}
	return ""
}

// drain recalls what is held beyond the capacity and not recalled yet, and in a drain of the
// operator's all that is held. It reports whether more than the capacity is held.
func (o *oracle) drain(capacity int64) (over bool) {
	if o.drains(o.now) {
		o.recallAll("")
	}
	excess := -o.free(capacity)
	over = excess > 0
	for _, debt := range o.Debts {
		excess -= debt
	}
	for ; over && excess > 0; excess-- {
		holder := o.largestHolder()
		if holder == "" {
			break
		}
		o.owe(holder, 1)
		o.pushRecalls(holder, 0)
	}
	return over
}

// A waiter is a request in the queue whose pool owes nothing.
type waiter struct {
	id, pool   string
	has, wants int64
}

// waitersInNeed lists the waiters at the head of the queue.
func (o *oracle) waitersInNeed() (out []*waiter) {
	requests := o.queued()
	for _, request := range requests[:min(int(oracleLine), len(requests))] {
		_, ids := parsed(request)
		w := &waiter{id: ids[0], wants: wants(o.Queue[request])}
		if isPooled(ids[0]) {
			w.pool = poolOf(ids[0])
			w.has = o.Held[w.pool]
		}
		if w.pool == "" || o.Debts[w.pool] == 0 {
			out = append(out, w)
		}
	}
	return out
}

// claim recalls the n-th permit for a waiter, if the largest holder has to give one to it. left
// counts the turns of rotation that may still begin.
func (o *oracle) claim(w *waiter, n, capacity int64, left *int64) bool {
	holder := o.largestHolder()
	if holder == "" || holder == w.pool || w.pool != "" && o.Debts[w.pool] > 0 {
		return false
	}
	gives, has, due := o.keptBy(holder), int64(0), o.now
	if w.pool != "" {
		has = w.has + n - 1
	}
	lacks, _ := o.minLacks(sessionOf(w.id))
	if has > 0 && (gives-1)*weightOf(w.id) < (has+1)*weightOf(holder) && lacks < n {
		return false
	}
	kind := ""
	if has == 0 && gives == 1 {
		kind = " t"
		if *left <= 0 {
			return false
		}
		*left--
		due = o.nextTurn(holder, capacity)
	}
	o.promise(holder, due, kind)
	o.pushRecalls(holder, due-o.now)
	return true
}

// cycle returns how long rotation leaves a permit with a pool of weight 1, and what a move costs,
// in ms.
func (o *oracle) cycle(capacity int64) (length, cost float64) {
	cost = float64(o.readMeta("move", oracleMove, oracleSlowest)) / 1000
	needy := 0
	for _, score := range o.Queue {
		if score/oracleRank == oracleLevels {
			needy++
		}
	}
	length = max(float64(oracleRepay)*cost, float64(oraclePace*capacity))
	length = min(length, float64(oraclePatient*capacity)/float64(max(1, needy)))
	return max(length, float64(oracleHaste)*cost), cost
}

// turnLength returns the time between two turns of rotation.
func (o *oracle) turnLength(capacity int64) int64 {
	length, _ := o.cycle(capacity)
	return max(1, int64(math.Floor(length/float64(max(1, capacity)))))
}

// mostMoves is how many permits are on their way in rotation at most.
func mostMoves(capacity int64) int64 { return max(1, capacity/oracleHaste) }

// nextTurn schedules a turn of rotation, and returns when the holder's permit is due.
func (o *oracle) nextTurn(holder string, capacity int64) int64 {
	length, cost := o.cycle(capacity)
	turn := min(max(o.now, o.readMeta("turn", 0, o.now+oracleFar)),
		o.now+mostMoves(capacity)*o.turnLength(capacity))
	o.setNum("turn", min(turn+o.turnLength(capacity), o.now+oracleFar))
	since := min(-o.Levels[holder]*8796093022208,
		float64(o.now)+float64(weightOf(holder))*length)
	due := min(max(float64(turn), since+4*cost), float64(o.now+oracleFar))
	return int64(math.Floor(due))
}

// balance recalls a permit for each that is wanted and not promised, level by level, as long as the
// largest holder has to give one. It first recalls what is held beyond the capacity. It withdraws
// promises beyond what is wanted.
func (o *oracle) balance(capacity int64) {
	if o.drain(capacity) {
		return
	}
	o.forgetPromises()
	waiters := o.waitersInNeed()
	top := -1.0
	if best := o.largestHolder(); best != "" {
		top = float64(o.keptBy(best)-1) / float64(weightOf(best))
	}
	var turns, rest, offered []string
	for _, name := range byScore(o.Promises) {
		pool := strings.Fields(name)[1]
		top = max(top, float64(o.Held[pool]-1)/float64(weightOf(pool)))
		switch {
		case strings.HasSuffix(name, " t"):
			turns = append(turns, name)
		case strings.HasSuffix(name, " o"):
			offered = append(offered, name)
		default:
			rest = append(rest, name)
		}
	}
	without := int64(0)
	for _, w := range waiters {
		switch {
		case w.pool == "":
			without += w.wants
		case w.has == 0:
			without++
		}
	}
	last := func(list *[]string) (name string) {
		name = (*list)[len(*list)-1]
		*list = (*list)[:len(*list)-1]
		return name
	}
	for int64(len(turns)) > without {
		o.withdrawPromise(last(&turns))
	}
	maps.DeleteFunc(o.Moves, func(_ string, until int64) bool { return until <= o.now })
	left := mostMoves(capacity) - int64(len(turns)+len(o.Moves))
	free := int(max(0, o.free(capacity)-o.num("reserve"))) + len(offered)
	promised, needed := free+len(turns)+len(rest), 0
	for n := range oracleWants {
		for _, w := range waiters {
			level := -1.0
			if w.pool != "" && w.has+n > 0 {
				level = float64(w.has+n+1) / float64(weightOf(w.id))
			}
			lacks, _ := o.minLacks(sessionOf(w.id))
			switch {
			case w.wants < n+1:
			case needed < promised && (needed < free || level <= top || lacks >= n+1):
				needed++
			case o.claim(w, n+1, capacity, &left):
				needed++
				promised++
			default:
				w.wants = 0
			}
		}
	}
	for _, list := range []*[]string{&rest, &turns, &offered} {
		for ; needed < promised && len(*list) > 0; promised-- {
			o.withdrawPromise(last(list))
		}
	}
}
