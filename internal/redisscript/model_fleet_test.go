package redisscript

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A fate is what becomes of a call on its way to Redis and back.
type fate int

const (
	arrives fate = iota
	requestLost
	replyLost
	doubled // sent again after its reply was lost
	slow    // under way while other things happen
	strayed // given up by its sender, and arrives all the same, much later
)

var fates = [...]string{"", ", request lost", ", reply lost", ", sent twice", ", slow", ", strayed"}

// A want is a request that is not settled.
type want struct {
	kind    Kind
	ids     []string
	pool    string
	extends bool
	out     bool // to be sent
	sent    bool
}

// A drop is a release, or the withdrawal of a request, that Redis has not confirmed.
type dropping struct {
	ids   []string
	plain bool
}

// A heartbeat under way.
type pulse struct {
	n    Renew
	sent int64
}

// A stray call reaches Redis after its sender gave it up.
type stray struct {
	x    *Exchange
	n    *Renew
	call func() // any other
}

// A peer is a session as the package semaphore makes them, without its goroutines: it believes in its leases from before it asked for them, repeats
// what was not answered under the same UUIDs, and gives back grants that crossed a withdrawal.
type peer struct {
	alive, cut               bool
	deaf                     bool // it lives, but its subscription does not
	session                  string
	capacity, min, most      int
	ttl                      int64
	epoch                    string
	limit, roster            int64
	anchorLocal, anchorRedis int64
	held                     map[string]int64 // until when it trusts the lease
	lost                     []string
	backends                 map[string]string // that it has said its permits cover
	vacant                   map[string]bool   // permits of which Redis has confirmed that they cover none
	dialled                  map[string]string // backends that it has not said yet
	wants                    []*want
	drops                    []dropping
	pools                    []string
	owed                     map[string]int
	heard                    map[string]Tally // of recalls, by pool
	offerer                  string
	offered                  int
	inbox                    []string
	nextBeat                 int64
	made                     int // UUIDs
	flight                   *flight
	pulse                    *pulse
}

// join starts a session in a free slot.
func (t *trial) join(slot, capacity, minimum, weight, pools, most int) {
	t.born++
	p := &peer{alive: true, capacity: capacity, ttl: t.plan.ttl, min: minimum, most: most, held: make(map[string]int64), backends: make(map[string]string), vacant: make(map[string]bool), dialled: make(map[string]string), owed: make(map[string]int), heard: make(map[string]Tally)}
	p.session = fmt.Sprintf("%08x-%04x-8%02x0", 0xa0+slot, t.born, weight)
	for i := range pools {
		p.pools = append(p.pools, fmt.Sprintf("%s-8%03x", p.session, i+1))
	}
	t.say("%s joins: capacity %d, min %d, weight %d, %d pools, most waiting %d", p.session, capacity, minimum, weight, pools, most)
	if t.beatAnswered(p, p.beatNow(t.now), t.now) {
		t.peers[slot] = p
		t.place.listen(p.session)
	}
}

func (p *peer) id(owner string) string {
	p.made++
	return fmt.Sprintf("%s-%012x", owner, p.made)
}

func (p *peer) plain() string { return p.session + "-" + Plain }

func (p *peer) expected(now int64) int64 {
	if p.anchorRedis == 0 {
		return 0
	}
	return p.anchorRedis + now - p.anchorLocal
}

func (p *peer) trustedSince(sent int64) int64 { return sent + p.ttl - p.ttl/10 }

func (p *peer) heldOf(pool string) (ids []string) {
	for _, id := range slices.Sorted(maps.Keys(p.held)) {
		if strings.HasPrefix(id, pool+"-") {
			ids = append(ids, id)
		}
	}
	return ids
}

// believed are the permits that their holders trust, and may open a connection under. One that has
// covered a backend which has ended, they ask Redis for before they do.
func (t *trial) believed() map[string]bool {
	out := make(map[string]bool)
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		for id, until := range p.held {
			if _, lives := t.postgres[id]; until > t.now && (lives || p.backends[id] == "" || p.vacant[id]) {
				out[id] = true
			}
		}
	}
	return out
}

// beatNow puts a heartbeat together.
func (p *peer) beatNow(now int64) Renew {
	n := Renew{Expected: p.expected(now), Session: p.session, Epoch: p.epoch, TTLMillis: p.ttl, Capacity: p.capacity, Info: "{}",
		NewEpoch: fmt.Sprintf("epoch-%d-%s", now, p.session), Limit: p.limit, Min: p.min, Roster: p.roster,
		Permits: slices.Sorted(maps.Keys(p.held))}
	for i, id := range n.Permits {
		if b := p.backends[id]; b != "" {
			if n.Backends == nil {
				n.Backends = make([]string, len(n.Permits))
			}
			n.Backends[i] = b
		}
	}
	for _, pool := range p.pools {
		held := len(p.heldOf(pool))
		n.Sharers = append(n.Sharers, Sharer{pool, held, min(p.owed[pool], held), p.heard[pool]})
	}
	return n
}

func (t *trial) beat(p *peer, f fate) {
	t.landPulse(p)
	n := p.beatNow(t.now)
	if p.cut && f != strayed {
		f = requestLost
	}
	switch f {
	case requestLost:
		t.say("%s: heartbeat%s", p.session, fates[f])
	case replyLost:
		_, _ = t.renew(n)
	case slow:
		t.say("%s: heartbeat%s", p.session, fates[f])
		p.pulse = &pulse{n, t.now}
		return
	case strayed:
		t.say("%s: heartbeat%s", p.session, fates[f])
		t.strays = append(t.strays, stray{n: &n})
	case doubled:
		if _, err := t.renew(n); err == nil && n.Epoch != "" {
			t.twice(func() { _, _ = t.renew(n) })
		}
		t.beat(p, arrives)
		return
	default:
		t.beatAnswered(p, n, t.now)
		return
	}
	p.nextBeat = min(p.nextBeat, t.now+p.ttl/12)
}

func (t *trial) landPulse(p *peer) {
	if b := p.pulse; b != nil {
		p.pulse = nil
		if p.cut || t.now-b.sent > p.ttl/5 { // it has given up
			_, _ = t.renew(b.n)
			return
		}
		t.beatAnswered(p, b.n, b.sent)
	}
}

// beatAnswered runs a heartbeat and takes its answer. Again if Redis forgot and a grant came meanwhile. It returns false to a session that
// may not join.
func (t *trial) beatAnswered(p *peer, n Renew, sent int64) (joined bool) {
	got, err := t.renew(n)
	if n.Epoch == "" && errors.As(err, new(RefusedMin)) {
		return false
	}
	if err != nil {
		t.failf("a heartbeat of %s: %v", p.session, err)
	}
	p.anchorLocal, p.anchorRedis = sent, got.Now
	p.nextBeat = sent + p.ttl/3
	lost := n.Epoch != "" && n.Epoch != got.Epoch
	p.limit, p.roster = got.Limit, got.Roster
	again := false
	for id := range p.held {
		again = again || lost && !slices.Contains(n.Permits, id)
	}
	if !again {
		p.epoch = got.Epoch
	}
	for _, id := range n.Permits {
		_, still := p.held[id]
		switch {
		case !still && lost: // it may have been put back after its release
			p.drop(id)
		case still && slices.Contains(got.Missing, id):
			t.lose(p, id)
		case still:
			p.held[id] = max(p.held[id], p.trustedSince(sent))
		}
	}
	for i, told := range got.Recalls {
		if lost { // and with the state what was owed to it
			p.owed[p.pools[i]], p.heard[p.pools[i]] = 0, told
		} else {
			p.recall(p.pools[i], told)
		}
	}
	t.endBackends(p, got.Quarantine)
	if again {
		t.beat(p, arrives)
	} else if lost {
		p.repeat()
		t.fly(p, arrives)
	}
	return true
}

func (t *trial) lose(p *peer, id string) {
	delete(p.held, id)
	p.lost = append(p.lost, id)
	if !p.cut || p.dialled[id] != "" { // else it sleeps; but what sleeps in the middle of a connect nobody can end
		delete(t.postgres, id)
	}
	delete(p.dialled, id)
}

// dial opens a connection under a permit whose former one has ended. If that one was said, it says
// first that there is none any more.
func (t *trial) dial(p *peer, id string, f fate) (opened bool) {
	delete(t.postgres, id)
	delete(p.dialled, id)
	p.made++
	if said := p.backends[id]; said != "" && !p.vacant[id] {
		if namesBackend(said) {
			p.backends[id] = fmt.Sprintf("0 0 0 %d", p.made)
		}
		if !t.record(p, id, f) {
			return false
		}
		p.vacant[id] = true
		p.made++
	}
	t.postgres[id] = fmt.Sprintf("%d %d %d %d", 100+p.made, t.now, modelStart, p.made)
	p.dialled[id] = t.postgres[id]
	t.say("%s opens %s under %s", p.session, t.postgres[id], id)
	return true
}

// cover says which backend a permit covers. Without that the connection is closed.
func (t *trial) cover(p *peer, id string, f fate) {
	if p.dialled[id] == "" && !t.dial(p, id, arrives) {
		return
	}
	p.backends[id], p.vacant[id] = p.dialled[id], false
	delete(p.dialled, id)
	if !t.record(p, id, f) {
		delete(t.postgres, id)
	}
}

// record says what is known of the backend of a permit, and reports whether that was confirmed.
func (t *trial) record(p *peer, id string, f fate) bool {
	said, epoch := p.backends[id], p.epoch
	if f == strayed {
		t.strays = append(t.strays, stray{call: func() { _ = t.mark(p, epoch, id, said) }})
	}
	if p.cut || f == requestLost || f == strayed {
		return false
	}
	err := t.mark(p, p.epoch, id, said)
	if errors.Is(err, ErrGone) {
		t.beat(p, arrives)
		if _, held := p.held[id]; !held {
			return false
		}
		err = t.mark(p, p.epoch, id, said)
	}
	if err != nil {
		if _, held := p.held[id]; held {
			t.lose(p, id)
		}
		return false
	}
	if f == doubled {
		t.twice(func() { _ = t.mark(p, p.epoch, id, said) })
	}
	return f != replyLost
}

// look sees which of those backends are gone. What it saw is said at once, or later.
func (t *trial) look(p *peer, epoch string, fields []string) {
	var ids, records []string
	for ; len(fields) >= 5; fields = fields[5:] {
		if lives := strings.Fields(t.postgres[fields[0]]); len(lives) == 0 || lives[0] != fields[1] || lives[1] != fields[2] {
			ids, records = append(ids, fields[0]), append(records, strings.Join(fields[1:5], " "))
		}
	}
	p.made++
	switch {
	case len(ids) == 0 || p.cut:
	case p.made%3 > 0:
		t.freeGone(p, epoch, ids, records)
	default:
		t.strays = append(t.strays, stray{call: func() { t.freeGone(p, epoch, ids, records) }})
	}
}

// endBackends ends what is in quarantine. Of some it does not get through to the server.
func (t *trial) endBackends(p *peer, quarantine []string) {
	for i := 0; i+1 < len(quarantine); i += 2 {
		id, backend := quarantine[i], strings.Fields(quarantine[i+1])
		if stuck := strings.HasSuffix(backend[0], "3"); stuck && !t.ended {
			continue
		}
		if lives := strings.Fields(t.postgres[id]); len(lives) > 0 && lives[0] == backend[0] && lives[1] == backend[1] {
			delete(t.postgres, id)
		}
		p.drop(id)
	}
	if len(p.drops) > 0 && !p.cut && p.flight == nil {
		t.fly(p, arrives)
	}
}

// recall hears what a pool was ever asked to give back.
func (p *peer) recall(pool string, told Tally) {
	heard := p.heard[pool]
	p.heard[pool] = Tally{max(heard.Recalled, told.Recalled), max(heard.Withdrawn, told.Withdrawn)}
	n := p.heard[pool].Recalled - heard.Recalled - (p.heard[pool].Withdrawn - heard.Withdrawn)
	p.owed[pool] = max(0, min(p.owed[pool]+int(n), len(p.heldOf(pool))))
}

func (p *peer) drop(ids ...string) {
	if len(ids) > 0 {
		p.drops = append(p.drops, dropping{ids: ids})
	}
}

func (p *peer) repeat() {
	for _, w := range p.wants {
		w.out = true
	}
}

// release gives a permit back, held or lost.
func (p *peer) release(id string) {
	delete(p.held, id)
	p.lost = slices.DeleteFunc(p.lost, func(other string) bool { return other == id })
	if pool := sharerOf(id); isShared(id) {
		p.owed[pool] = max(0, p.owed[pool]-1)
	}
	p.drops = append(p.drops, dropping{[]string{id}, !isShared(id)})
}
