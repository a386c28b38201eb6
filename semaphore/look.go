package semaphore

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/redisscript"
)

// Looks. A process that is killed leaves its permits held until their leases end, though Postgres
// has ended its backends at once. While somebody waits, a script asks one session to look for the
// recorded backends of each session without a subscription. The session looks over a connection of
// its own, and Redis frees the permits of backends that are gone. The rules are in
// internal/redisscript/quarantine.lua.
//
//	      push "s"              BackendsGone; then the script gone, for what is gone
//	idle ----------> looking -------------------------------------------------------> idle
//
// A push that comes meanwhile is dropped. So is a look that failed: while somebody waits, the next
// one is asked for soon.

// lookTimeout bounds one look: a checkout, a query, and the script.
const lookTimeout = 5 * time.Second

// look has a pool of this session look for backends, which come as <UUID> <pid> <start> <server>
// <n>, ... It does not wait for that.
func (s *Semaphore) look(epoch string, fields []string) {
	var ids, records []string
	var backends []Backend
	for ; len(fields) >= 5; fields = fields[5:] {
		record := strings.Join(fields[1:5], " ")
		b, ok := parseBackend(record)
		server, err := strconv.ParseInt(fields[3], 10, 64)
		if !ok || err != nil {
			continue
		}
		b.Server = server
		ids, records, backends = append(ids, fields[0]), append(records, record), append(backends, b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ender := s.ender()
	if ender == nil || s.closed || s.looking || epoch != s.epoch || len(ids) == 0 {
		return
	}
	s.looking = true
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		ctx, cancel := context.WithTimeout(s.ctx, lookTimeout)
		defer cancel()
		gone := ender.BackendsGone(ctx, backends)
		n := 0
		for i := range min(len(ids), len(gone)) {
			if gone[i] {
				ids[n], records[n] = ids[i], records[i]
				n++
			}
		}
		if n > 0 {
			s.freeGone(ctx, epoch, ids[:n], records[:n])
		}
		s.mu.Lock()
		s.looking = false
		s.mu.Unlock()
	}()
}

// freeGone has Redis free the permits whose backends are gone, as far as those are still recorded.
func (s *Semaphore) freeGone(ctx context.Context, epoch string, ids, records []string) {
	select {
	case s.marking <- struct{}{}: // see record
		defer func() { <-s.marking }()
	case <-ctx.Done():
		return
	}
	s.mu.Lock()
	expected := s.anchor.expected(s.sinceStart())
	s.mu.Unlock()
	freed, err := redisscript.Gone(ctx, s.scripter(s.own), s.keys, expected, epoch, ids, records)
	switch {
	case err != nil && s.ctx.Err() == nil:
		s.log.Warn("permits whose Postgres backends are gone could not be freed", "semaphore", s.base, "error", err)
	case freed > 0:
		s.log.Warn("a session ended without release: its Postgres backends are gone, and their permits free", "semaphore", s.base, "permits", freed)
	}
}
