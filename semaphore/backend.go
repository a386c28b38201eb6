package semaphore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// Quarantine. A process that is stopped cannot end its connections, so its backends outlive its leases. A pool that records which backend
// each of its permits covers (Share.Cover) need not end them itself: a permit whose lease expired stays counted, in quarantine, until
// another session has had Postgres end that backend, or found it gone. It is for at most 10 s, and 1 s more for all but the first: nobody alive
// may have a connection to do it by. The rules are in internal/redisscript/quarantine.lua.

// A Backend is one Postgres backend, for all time: pids are used again, but not with the same start.
type Backend struct {
	PID    uint32
	Start  int64 // pg_stat_activity.backend_start, in microseconds since 1970
	Server int64 // pg_postmaster_start_time() of its server, likewise: only a server that shows the same can say that it is gone
}

// BackendEnder is a [Sharer] whose pool can end backends that it did not open, and look for them.
// Only a pool whose permits cover some is asked.
type BackendEnder interface {
	Sharer
	// BackendsGone reports which of those backends are gone, and ends none. It asks Postgres over a
	// connection that the pool holds a permit for. A backend that the server may not show, or that
	// another server has had, is not gone. It may block, for as long as ctx allows.
	BackendsGone(ctx context.Context, backends []Backend) (gone []bool)
	// EndBackends has Postgres end those backends, over a connection that the pool holds a permit for, and reports which are gone. It
	// may block, for as long as ctx allows.
	EndBackends(ctx context.Context, backends []Backend) (gone []bool)
}

// covered is what Redis is told of the backend that p covers: "" if p never covered one, and a pid
// of 0 between two of them. The number tells it from those before: what says so can be overtaken on
// its way by what is said of a later one. s.mu is held.
func (p *Permit) covered() string {
	if p.marks == 0 {
		return ""
	}
	return fmt.Sprintf("%d %d %d %d", p.backend.PID, p.backend.Start, p.backend.Server, p.marks)
}

// Vacate says that p covers no backend any more, because another connection is about to be opened
// under p. It returns nil if Redis knows of none. Else the connection may be opened only after
// record returned nil: another session that sees the recorded backend gone frees p, and must never
// do that while p covers a connection of which it knows nothing. That session compares the record
// in the step that frees p. So either record comes first, and p stays held; or p is free first, and
// record returns ErrLost.
//
// Errors of record are those of Cover's.
func (sh *Share) Vacate(p *Permit) (record func(context.Context) error) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state != held {
		return func(context.Context) error { return fmt.Errorf("%w", ErrLost) }
	}
	if p.marks == 0 || p.vacant {
		return nil
	}
	if p.backend != (Backend{}) { // else the last record failed, and is said again
		p.backend = Backend{}
		p.marks++
	}
	id, covered := p.id, p.covered()
	return func(ctx context.Context) error {
		err := s.record(ctx, p, id, covered)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil && p.id == id {
			p.vacant = true
		}
		return err
	}
}

// Cover says which backend p covers, in place of what it covered before. It must be called before another connection can be opened under p, and is
// done at once; record then tells Redis. No connection should be handed out before that returned nil: whatever happens to the process from then
// on, its backend cannot outlive the permit by much, and cannot go uncounted.
//
// Of what crosses record,
//
//   - a loss of p that comes first is what it returns; one that comes later finds the backend recorded, and the pool ends it;
//   - a release of p, when the connection was closed meanwhile, can be overtaken: record then finds that p is not held;
//   - if another connection was opened under p since, its Vacate and its Cover came later, so what they record stays;
//   - the same goes for a heartbeat that was gathered before this Cover. Those that are gathered after it say what record does.
//
// So one that fails may be known all the same. That is no more than a backend that is looked for in vain, should p expire: the
// pool closes the connection, and opens another under p or gives it back.
//
// Errors of record: ErrLost if p is not held any more; ErrUnavailable if Redis did not answer for as long as p's lease was trusted, a TTL at
// most; the context's.
func (sh *Share) Cover(p *Permit, b Backend) (record func(context.Context) error) {
	s := sh.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.state != held {
		return func(context.Context) error { return fmt.Errorf("%w", ErrLost) }
	}
	p.backend, p.vacant = b, false
	p.marks++
	id, covered := p.id, p.covered()
	return func(ctx context.Context) error { return s.record(ctx, p, id, covered) }
}

// recordsAtOnce bounds the records on their way, and with them the connections to Redis: with a Redis whose
// replies take long, a process that opens many connections at once waits for this many together.
const recordsAtOnce = 4

func (s *Semaphore) record(ctx context.Context, p *Permit, id, covered string) error {
	// Not by the flights' connection, which is cut when a caller gives up.
	select {
	case s.marking <- struct{}{}:
		defer func() { <-s.marking }()
	case <-ctx.Done():
		return giveUp(ctx, fmt.Errorf("%w: no answer", ErrUnavailable))
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.TTL) // its own, not that of those before it
	defer cancel()
	s.mu.Lock()
	patience, most, limit := s.patienceOfCalls(), marksAtOnce, s.cfg.TTL
	s.mu.Unlock()
	if s.borrowed { // the connections are the application's
		most, limit = 1, patience
	}
	// A mark can be said twice, and together. One that is unanswered is hedged over another connection, and goes
	// on: a slow Redis may answer it in time. One that failed is repeated. A connection that was just made should
	// not end because one reply was lost; once the lease is lost, the pool ends it.
	answers := make(chan error, marksAtOnce)
	err := fmt.Errorf("%w: no answer", ErrUnavailable)
	for underWay := 0; ; {
		if underWay < most {
			underWay++
			go func() {
				ctx, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				answers <- s.mark(ctx, id, covered)
			}()
		}
		select {
		case err = <-answers:
			underWay--
		case <-time.After(patience):
			if !p.Held() {
				return err
			}
			continue
		case <-ctx.Done():
			return giveUp(ctx, err)
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, redisscript.ErrNotHeld):
			s.mu.Lock()
			if s.permits[id] == p {
				s.lose(p)
			}
			if !s.left {
				s.beatSoon() // we have slept: what else is lost?
			}
			s.mu.Unlock()
			return fmt.Errorf("%w: %q does not hold it any more", ErrLost, s.base)
		}
		err = unavailable(err)
		select {
		case <-time.After(min(s.cfg.RetryInterval, retryMost)):
		case <-ctx.Done():
			return giveUp(ctx, err)
		}
		if !p.Held() {
			return err
		}
	}
}

// marksAtOnce bounds the marks on their way for one record.
const marksAtOnce = 4

// mark records once, after a heartbeat if Redis does not know the session.
func (s *Semaphore) mark(ctx context.Context, id, covered string) error {
	for again := false; ; again = true {
		s.mu.Lock()
		epoch, expected := s.epoch, s.anchor.expected(s.sinceStart())
		s.mu.Unlock()
		err := redisscript.Mark(ctx, s.scripter(s.own), s.keys, expected, s.identity.session, epoch, id, covered)
		if again || !errors.Is(err, redisscript.ErrGone) {
			return err
		}
		if err := s.beat(ctx); err != nil {
			return err
		}
	}
}

const (
	// endMost bounds one call of EndBackends: a checkout, and the end of a backend. What it did not achieve, a later heartbeat asks for again.
	endMost = 5 * time.Second
	// endAgain is how soon the same is tried again, at first. It doubles, so that one that nobody can end does not keep us busy.
	endAgain     = time.Second
	endAgainMost = time.Minute
)

// ending is one backend in quarantine that this session was asked to end.
type ending struct {
	underWay bool
	pause    time.Duration // after the last try
	next     time.Duration // when the next may be
}

// endBackends has a pool of this session end backends in quarantine, which come as "<UUID>", "<pid> <start>", ... It does not wait for that.
func (s *Semaphore) endBackends(quarantine []string) {
	if len(quarantine) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ender := s.ender()
	if ender == nil || s.closed {
		return
	}
	now := s.sinceStart()
	var ids []string
	var backends []Backend
	for i := 0; i+1 < len(quarantine); i += 2 {
		id := quarantine[i]
		b, ok := parseBackend(quarantine[i+1])
		e := s.ending[id]
		if !ok || e != nil && (e.underWay || now < e.next) {
			continue
		}
		if e == nil {
			e = &ending{pause: endAgain / 2}
			s.ending[id] = e
		}
		e.underWay = true
		ids, backends = append(ids, id), append(backends, b)
	}
	if len(ids) == 0 {
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		ctx, cancel := context.WithTimeout(s.ctx, endMost)
		defer cancel()
		gone := ender.EndBackends(ctx, backends)
		s.ended(ids, gone)
	}()
}

// ended takes the outcome of EndBackends. What is gone is dropped, by whoever finds it so: twice is no more than once. The session may have
// ended meanwhile; then nothing is sent, and others find it.
func (s *Semaphore) ended(ids []string, gone []bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i, id := range ids {
		if i < len(gone) && gone[i] {
			n++
			delete(s.ending, id)
			s.drop(id)
			continue
		}
		e := s.ending[id]
		e.underWay = false
		e.pause = min(2*e.pause, endAgainMost)
		e.next = s.sinceStart() + e.pause
	}
	if !s.closed {
		s.log.Warn("leases expired without release: their Postgres backends are ended", "semaphore", s.base, "permits", len(ids), "gone", n)
	}
	s.fly()
}

// forgetEnded forgets what a heartbeat says is in quarantine no longer.
func (s *Semaphore) forgetEnded(quarantine []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ending) == 0 {
		return
	}
	still := make(map[string]bool, len(quarantine)/2)
	for i := 0; i < len(quarantine); i += 2 {
		still[quarantine[i]] = true
	}
	for id, e := range s.ending {
		if !e.underWay && !still[id] {
			delete(s.ending, id)
		}
	}
}

// ender is the pool that can end backends and has the most connections to do it by, or nil. s.mu is held.
func (s *Semaphore) ender() BackendEnder {
	covering := make(map[*Share]int)
	for _, p := range s.permits {
		if p.share != nil && p.backend != (Backend{}) {
			covering[p.share]++
		}
	}
	var best BackendEnder
	most := 0
	for sh, n := range covering {
		if e, ok := sh.sharer.(BackendEnder); ok && n > most {
			best, most = e, n
		}
	}
	return best
}

// parseBackend reads "<pid> <start>", whatever follows.
func parseBackend(text string) (Backend, bool) {
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return Backend{}, false
	}
	pid, err := strconv.ParseUint(fields[0], 10, 32)
	start, startErr := strconv.ParseInt(fields[1], 10, 64)
	return Backend{PID: uint32(pid), Start: start}, err == nil && startErr == nil
}
