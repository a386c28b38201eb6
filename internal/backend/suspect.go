package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/internal/allotment"
)

const (
	// answerTimeout bounds the first query: this connection may be dead, too.
	answerTimeout = time.Second
	// sinceSlack is how far Postgres's clock may drift from ours while a connection is open.
	sinceSlack = time.Second
)

// EndSuspects has Postgres end the backends of connections that were lost, and reports which are
// gone. It knows the pid of each, and a time at which the backend lived. It spares a backend of
// that pid that started later, because that is another one, and a backend of another role than
// pc's. It reports neither as gone: someone may have set a clock, and we cannot tell.
//
// It sends no query, and so finds nothing gone, if a backend is on another server than pc's or pc
// goes through a pooler, whose pids are its own. The record of a backend names its server, whatever
// the address. Backends without a record must have pc's address.
func EndSuspects(ctx context.Context, pc *pgconn.PgConn,
	suspects []*allotment.Suspect) (gone []bool, err error) {
	gone = make([]bool, len(suspects))
	here, err := recordedHere(ctx, pc, suspects)
	if err == nil {
		err = endRecorded(ctx, pc, suspects, here, gone)
	}
	if err == nil {
		err = endByAddr(ctx, pc, suspects, here, gone)
	}
	if err != nil {
		return nil, err
	}
	return gone, nil
}

// recordedHere reports which backends are recorded as those of pc's server.
func recordedHere(ctx context.Context, pc *pgconn.PgConn,
	suspects []*allotment.Suspect) (here []bool, err error) {
	here = make([]bool, len(suspects))
	i := slices.IndexFunc(suspects, func(s *allotment.Suspect) bool {
		return s.Recorded != allotment.Backend{}
	})
	if i < 0 {
		return here, nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, at, err := ofServer(ctx, pc, shows([]allotment.Backend{suspects[i].Recorded}))
	for i, s := range suspects {
		here[i] = s.Recorded.Server == at
	}
	return here, err
}

// endRecorded is EndSuspects for backends recorded here, by pid and start.
func endRecorded(ctx context.Context, pc *pgconn.PgConn, suspects []*allotment.Suspect,
	here, gone []bool) error {
	var backends []allotment.Backend
	var at []int // of each, in suspects
	for i, s := range suspects {
		if here[i] {
			backends, at = append(backends, s.Recorded), append(at, i)
		}
	}
	for i, ended := range End(ctx, pc, backends) {
		gone[at[i]] = ended
	}
	if pc.IsClosed() {
		return errors.New("passbuddy: the connection broke")
	}
	return ctx.Err()
}

// endByAddr is EndSuspects for all other backends.
func endByAddr(ctx context.Context, pc *pgconn.PgConn, suspects []*allotment.Suspect,
	here, gone []bool) error {
	addr := pc.Conn().RemoteAddr()
	var backends []allotment.Backend // all that is known of them is the pid
	var which []string
	for i, s := range suspects {
		if here[i] || addr == nil || s.Addr != addr.String() {
			continue
		}
		backends = append(backends, allotment.Backend{PID: s.PID})
		which = append(which, fmt.Sprintf("(pid = %d and "+
			"clock_timestamp() - backend_start >= %d * interval '1 microsecond')",
			s.PID, (time.Since(s.Since)-sinceSlack).Microseconds()))
	}
	if len(backends) == 0 {
		return nil
	}
	first, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	before, err := query(first, pc, shows(backends))
	if err != nil {
		return err
	}
	rows, err := query(first, pc, fmt.Sprintf(
		`select pg_backend_pid(), count(pg_catalog.pg_terminate_backend(pid)) `+
			`from pg_catalog.pg_stat_activity
		where pg_backend_pid() = %d`+
			` and usename = session_user and pid <> pg_backend_pid() and (%s)`,
		pc.PID(), strings.Join(which, " or ")))
	if err != nil {
		return err
	}
	if len(rows) != 1 {
		return errors.New("passbuddy: bug: a count has one row")
	}
	if rows[0].PID != pc.PID() { // a pooler's number
		return nil
	}
	spared := len(before) - int(rows[0].Start) // not ours to end, so we do not wait for them
	return watch(ctx, pc, backends, func(rows []allotment.Backend) (left int) {
		alive := make(map[uint32]bool, len(rows))
		for _, b := range rows {
			alive[b.PID] = true
		}
		for i, s := range suspects {
			if !here[i] {
				gone[i] = s.Addr == addr.String() && !alive[s.PID]
			}
		}
		return max(0, len(alive)-spared)
	})
}
