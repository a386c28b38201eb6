package redisscript

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// The part of the oracle that says who is granted what is free, who is asked to give a permit back, and when.

// learn takes what a move was measured to cost.
func (o *oracle) learn(session string, cost int64) {
	if cost > 0 {
		maps.DeleteFunc(o.Moves, func(sharer string, _ int64) bool { return sessionOf(sharer) == session })
		known := o.pace("move", cost, oracleSlowest)
		o.setNum("move", int64(math.Floor(float64(known)+float64(min(cost, oracleSlowest)-known)/8)))
	}
}

func (o *oracle) pace(field string, otherwise, most int64) int64 {
	if _, ok := o.Meta[field]; !ok || o.num(field) > most {
		return otherwise
	}
	return o.num(field)
}

// note notes an event of a row, which ends with a span without one.
func (o *oracle) note(row string, span int64) {
	if o.now-o.pace(row, 0, o.now) > span {
		o.setNum(row+"0", o.now)
	}
	o.setNum(row, o.now)
}

func (o *oracle) goesOnUntil(row string, span int64) int64 {
	return min(o.pace(row, 0, o.now)+span, o.pace(row+"0", 0, o.now)+oracleJoining)
}

func (o *oracle) young() int64 { return o.goesOnUntil("young", oracleYoung) }
func (o *oracle) calm() int64  { return max(o.goesOnUntil("calm", oracleCalm), o.young()) }

// atOnce is how many of n permits a pool may have before the calm is over: up to its even part.
func (o *oracle) atOnce(sharer string, n, capacity int64, joins bool) int64 {
	if joins {
		o.note("calm", oracleCalm)
	} else if o.calm() <= o.now {
		return n
	}
	if n == 1 && o.Held[sharer] == 0 {
		return n
	}
	sum := int64(0)
	for session := range o.Sessions {
		sum += weightOf(session)
	}
	lacking, _ := o.lacking(sessionOf(sharer))
	part := max(1, capacity*weightOf(sharer)/max(1, sum))
	if o.young() > o.now {
		part = 1
	}
	return min(n, max(0, part-o.Held[sharer], lacking))
}

// heldBack reports whether a pool's request waits for the end of the calm.
func (o *oracle) heldBack(id string, capacity int64) bool {
	return isShared(id) && o.calm() > o.now && o.atOnce(sharerOf(id), 1, capacity, false) == 0
}

// promise recalls a permit; kind is "", " t" for a turn, or " o" for one that was offered.
func (o *oracle) promise(sharer string, due int64, kind string) {
	name := fmt.Sprintf("%d %s%s", o.seq(), sharer, kind)
	o.Promises[name] = int64(math.Floor(float64(due+oraclePromise) + 3*float64(o.pace("move", oracleMove, oracleSlowest))/1000))
	o.indebt(sharer, 1)
}

// keepPromise ends the first promise that rests on a sharer.
func (o *oracle) keepPromise(sharer string) {
	for _, name := range byScore(o.Promises) {
		if strings.Fields(name)[1] == sharer {
			delete(o.Promises, name)
			return
		}
	}
}

// withdrawPromise takes a promise back.
func (o *oracle) withdrawPromise(name string) {
	fields := strings.Fields(name)
	delete(o.Promises, name)
	if o.Debts[fields[1]] == 0 {
		return
	}
	o.indebt(fields[1], -1)
	if strings.HasSuffix(name, " t") {
		length, _ := o.cycle(o.capacity)
		turn := o.pace("turn", 0, o.now+oracleFar)
		o.setNum("turn", max(0, turn-max(1, int64(math.Floor(length/float64(max(1, o.capacity)))))))
	}
	o.tell(fields[1], 0)
}

func (o *oracle) tell(sharer string, delay int64) {
	t := o.tally(sharer)
	o.push(sessionOf(sharer), fmt.Sprintf("b %s %s %d %d %d", o.epoch, sharer, t.Recalled, t.Withdrawn, delay))
}

func (o *oracle) indebt(sharer string, n int64) {
	if n > 0 {
		o.Recalls["+"+sharer]++
	} else {
		o.Recalls["-"+sharer]++
	}
	o.add(o.Debts, sharer, n)
	o.place(sharer, o.Held[sharer]-o.Debts[sharer])
	o.reckon(sessionOf(sharer), -n)
}

func (o *oracle) forgetPromises() {
	maps.DeleteFunc(o.Promises, func(_ string, expiry int64) bool { return expiry <= o.now })
}

// largest lists the sharers that can give a permit, of the highest level first.
func (o *oracle) largest() []string {
	all := byScore(o.Shares)
	slices.Reverse(all)
	return all
}

// richest is the first of them whose session's minimum it would not break.
func (o *oracle) richest() string {
	for _, sharer := range o.largest() {
		if lacking, ok := o.lacking(sessionOf(sharer)); ok && lacking >= 0 {
			continue
		}
		if o.share(sharer) > 0 {
			return sharer
		}
		delete(o.Shares, sharer) // its counts were deleted
	}
	return ""
}

// drain asks the largest for what is held beyond the capacity, and was not asked back yet.
func (o *oracle) drain(capacity int64) (over bool) {
	excess := -o.free(capacity)
	over = excess > 0
	for _, debt := range o.Debts {
		excess -= debt
	}
	for ; over && excess > 0; excess-- {
		holder := o.richest()
		if holder == "" {
			break
		}
		o.indebt(holder, 1)
		o.tell(holder, 0)
	}
	return over
}

// A waiter is a request in the queue whose pool owes nothing.
type waiter struct {
	id, sharer string
	has, wants int64
}

func (o *oracle) inNeed() (out []*waiter) {
	line := o.line()
	for _, request := range line[:min(int(oracleLine), len(line))] {
		_, ids := parsed(request)
		w := &waiter{id: ids[0], wants: wants(o.Queue[request])}
		if isShared(ids[0]) {
			w.sharer = sharerOf(ids[0])
			w.has = o.Held[w.sharer]
		}
		if w.sharer == "" || o.Debts[w.sharer] == 0 {
			out = append(out, w)
		}
	}
	return out
}

// claim recalls a permit for a waiter, if it may have one of the largest.
func (o *oracle) claim(w *waiter, n, capacity int64, left *int64) bool {
	holder := o.richest()
	if holder == "" || holder == w.sharer || w.sharer != "" && o.Debts[w.sharer] > 0 {
		return false
	}
	gives, has, due := o.share(holder), int64(0), o.now
	if w.sharer != "" {
		has = w.has + n - 1
	}
	lacking, _ := o.lacking(sessionOf(w.id))
	if has > 0 && (gives-1)*weightOf(w.id) < (has+1)*weightOf(holder) && lacking < n {
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
	o.tell(holder, due-o.now)
	return true
}

// cycle is how long a permit stays with a pool of weight 1 in rotation, and what a move costs.
func (o *oracle) cycle(capacity int64) (length, cost float64) {
	cost = float64(o.pace("move", oracleMove, oracleSlowest)) / 1000
	needy := 0
	for _, score := range o.Queue {
		if score/oracleRank == oracleLevels {
			needy++
		}
	}
	length = max(float64(oracleRepay)*cost, float64(oraclePace*capacity))
	return max(min(length, float64(oraclePatient*capacity)/float64(max(1, needy))), float64(oracleHaste)*cost), cost
}

// nextTurn is when a permit moves in rotation.
func (o *oracle) nextTurn(holder string, capacity int64) int64 {
	length, cost := o.cycle(capacity)
	turn := max(o.now, o.pace("turn", 0, o.now+oracleFar))
	o.setNum("turn", min(turn+max(1, int64(math.Floor(length/float64(max(1, capacity))))), o.now+oracleFar))
	since := min(-o.Shares[holder]*8796093022208, float64(o.now)+float64(weightOf(holder))*length)
	return int64(math.Floor(min(max(float64(turn), since+4*cost), float64(o.now+oracleFar))))
}

// balance asks the largest for a permit, for each that is wanted and not promised, as long as there is a claim to it, level by level. What is
// too much goes first; what is promised beyond what is wanted is taken back.
func (o *oracle) balance(capacity int64) {
	if o.drain(capacity) {
		return
	}
	o.forgetPromises()
	waiters := o.inNeed()
	top := -1.0
	if best := o.richest(); best != "" {
		top = float64(o.share(best)-1) / float64(weightOf(best))
	}
	var turns, rest, offered []string
	for _, name := range byScore(o.Promises) {
		sharer := strings.Fields(name)[1]
		top = max(top, float64(o.Held[sharer]-1)/float64(weightOf(sharer)))
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
		case w.sharer == "":
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
	left := max(1, capacity/oracleHaste) - int64(len(turns)+len(o.Moves))
	free := int(max(0, o.free(capacity)-o.num("reserve"))) + len(offered)
	promised, needed := free+len(turns)+len(rest), 0
	for n := range oracleWants {
		for _, w := range waiters {
			level := -1.0
			if w.sharer != "" && w.has+n > 0 {
				level = float64(w.has+n+1) / float64(weightOf(w.id))
			}
			lacking, _ := o.lacking(sessionOf(w.id))
			switch {
			case w.wants < n+1:
			case needed < promised && (needed < free || level <= top || lacking >= n+1):
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
