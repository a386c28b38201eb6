package backend

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

const (
	// answerMost bounds the first query: the connection may be dead as well.
	answerMost = time.Second
	// sinceSlack is by how much Postgres's clock may run otherwise than ours since a connection was
	// opened.
	sinceSlack = time.Second
)

// EndSuspects has Postgres end the backends of connections that were lost, and reports which are
// gone. Of those it knows the pid, and a time at which they were there: a backend of that pid that
// has started later is another, and is not touched. Nor is one of another role than pc has logged
// in with. Both are not gone either: clocks are set, and we do not know better.
//
// It asks nothing, and so finds nothing gone, about another server than pc's; nor through a pooler,
// whose pids are its own.
func EndSuspects(ctx context.Context, pc *pgconn.PgConn, suspects []*allotment.Suspect) (gone []bool, err error) {
	gone = make([]bool, len(suspects))
	addr := pc.Conn().RemoteAddr()
	var pids, which []string
	for _, s := range suspects {
		if addr == nil || s.Addr != addr.String() {
			continue
		}
		pid := strconv.FormatUint(uint64(s.PID), 10)
		age := strconv.FormatInt((time.Since(s.Since) - sinceSlack).Microseconds(), 10)
		pids = append(pids, pid)
		which = append(which, "(pid = "+pid+" and clock_timestamp() - backend_start >= "+age+" * interval '1 microsecond')")
	}
	if len(pids) == 0 {
		return gone, nil
	}
	self := strconv.FormatUint(uint64(pc.PID()), 10)
	first, cancel := context.WithTimeout(ctx, answerMost)
	defer cancel()
	look := `select pid, 0 from pg_catalog.pg_stat_activity where pid in (` + strings.Join(pids, ",") + `)`
	before, err := query(first, pc, look)
	if err != nil {
		return nil, err
	}
	rows, err := query(first, pc, `select pg_backend_pid(), count(pg_catalog.pg_terminate_backend(pid)) from pg_catalog.pg_stat_activity
		where pg_backend_pid() = `+self+` and usename = session_user and pid <> pg_backend_pid() and (`+strings.Join(which, " or ")+`)`)
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 {
		return nil, errors.New("passbuddy: bug: a count has one row")
	}
	if rows[0].PID != pc.PID() { // a pooler's number
		return gone, nil
	}
	spared := len(before) - int(rows[0].Start) // not ours to end, so not waited for
	deadline := time.Now().Add(goneMost)
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		rows, err := query(ctx, pc, look)
		if err != nil {
			return nil, err
		}
		alive := make(map[uint32]bool, len(rows))
		for _, b := range rows {
			alive[b.PID] = true
		}
		for i, s := range suspects {
			gone[i] = s.Addr == addr.String() && !alive[s.PID]
		}
		if len(alive) <= spared || time.Now().After(deadline) {
			return gone, nil
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return gone, nil
		}
	}
}
