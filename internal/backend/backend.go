// Package backend knows one Postgres backend from another, sees which are gone, and ends those of
// processes that cannot do it themselves.
//
// Everything goes by the simple protocol and without arguments, over the bare connection: so it
// works in each of pgx's query modes, leaves no prepared statement, and no tracer of the user's
// sees it. What is written into the statements are numbers.
package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/semaphore"
)

const (
	// start is backend_start in microseconds, which is as exact as Postgres keeps it.
	start = `(extract(epoch from backend_start) * 1000000)::bigint`
	// server is a row beside those of backends: when the server was started.
	server = `select 0, (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint`

	// goneTimeout bounds how long End waits for backends to end: to do so takes milliseconds, but
	// one can be held up by its disk.
	goneTimeout = 3 * time.Second
	minPause    = time.Millisecond
	maxPause    = 50 * time.Millisecond
)

// Of returns the backend of pc. It asks it one query, and is for pc's first use. It is an error if
// the server at the other end is not the backend itself: one behind a pooler serves others too, and
// is not ours to end.
func Of(ctx context.Context, pc *pgconn.PgConn) (semaphore.Backend, error) {
	rows, at, err := ofServer(ctx, pc, `select pid, `+start+` from pg_catalog.pg_stat_activity where pid = pg_backend_pid()`)
	if err != nil {
		return semaphore.Backend{}, fmt.Errorf("passbuddy: Config.Fence: asking for the backend of a new connection: %w", err)
	}
	if len(rows) != 1 || rows[0].Start == 0 {
		return semaphore.Backend{}, errors.New("passbuddy: Config.Fence: pg_stat_activity does not show a new connection's own backend")
	}
	rows[0].Server = at
	if b := rows[0]; b.PID != pc.PID() {
		return semaphore.Backend{}, fmt.Errorf("passbuddy: Config.Fence: the connection to backend %d goes through a pooler, which calls it %d: "+
			"Fence needs connections to Postgres itself", b.PID, pc.PID())
	}
	return rows[0], nil
}

// End has Postgres end those backends, and reports which are gone. pid and start must both match,
// so a pid that was used again is not touched. So must the role that pc has logged in with. One
// that is alive and not ours to end, or to see, is not gone.
//
// Between the look and the signal a backend can end by itself. Its pid is then used again only
// after all others were: no other process is hit.
func End(ctx context.Context, pc *pgconn.PgConn, backends []semaphore.Backend) (gone []bool) {
	gone = make([]bool, len(backends))
	if len(backends) == 0 {
		return gone
	}
	pairs := make([]string, len(backends))
	for i, b := range backends {
		pairs[i] = fmt.Sprintf("(%d,%d)", b.PID, b.Start)
	}
	// An error is no more than that some may live on: the look tells.
	_, _ = query(ctx, pc, `select count(pg_catalog.pg_terminate_backend(pid)), 0 from pg_catalog.pg_stat_activity
		where usename = session_user and pid <> pg_backend_pid() and (pid, `+start+`) in (`+strings.Join(pairs, ",")+`)`)

	look := shows(backends)
	deadline := time.Now().Add(goneTimeout)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		alive, err := query(ctx, pc, look)
		if err != nil {
			return make([]bool, len(backends))
		}
		left := 0
		for i, b := range backends {
			gone[i] = !isAmong(b, alive)
			if !gone[i] && b.PID != pc.PID() { // else it is our own: whoever lost its lease is about to close it
				left++
			}
		}
		if left == 0 || time.Now().After(deadline) {
			return gone
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return gone
		}
	}
}

// Gone reports which of those backends are gone, and ends none. A backend of a server that was not
// started when this one was is not gone: pc may be connected to another Postgres, which never had
// it.
func Gone(ctx context.Context, pc *pgconn.PgConn, backends []semaphore.Backend) (gone []bool) {
	gone = make([]bool, len(backends))
	if len(backends) == 0 {
		return gone
	}
	alive, at, err := ofServer(ctx, pc, shows(backends))
	for i, b := range backends {
		gone[i] = err == nil && b.Server == at && !isAmong(b, alive)
	}
	return gone
}

// shows asks for all that has one of their pids. Another role's backend_start is null for us.
func shows(backends []semaphore.Backend) string {
	pids := make([]string, len(backends))
	for i, b := range backends {
		pids[i] = strconv.FormatUint(uint64(b.PID), 10)
	}
	return `select pid, coalesce(` + start + `, 0) from pg_catalog.pg_stat_activity where pid in (` + strings.Join(pids, ",") + `)`
}

// isAmong reports whether b may be one of those that the server shows.
func isAmong(b semaphore.Backend, alive []semaphore.Backend) bool {
	return slices.ContainsFunc(alive, func(other semaphore.Backend) bool {
		return other.PID == b.PID && (other.Start == b.Start || other.Start == 0)
	})
}

// ofServer is query, and tells when the server was started.
func ofServer(ctx context.Context, pc *pgconn.PgConn, sql string) (rows []semaphore.Backend, at int64, err error) {
	all, err := query(ctx, pc, sql+" union all "+server)
	for _, row := range all {
		if row.PID == 0 {
			at = row.Start
		} else {
			rows = append(rows, row)
		}
	}
	if err == nil && at == 0 {
		err = errors.New("the server does not say when it was started")
	}
	return rows, at, err
}

// query runs a statement that returns pairs of numbers. The user may have left the connection in
// another role than it logged in with, which may not see or end what this one may.
func query(ctx context.Context, pc *pgconn.PgConn, sql string) ([]semaphore.Backend, error) {
	results, err := pc.Exec(ctx, "set local role none; "+sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var out []semaphore.Backend
	for _, row := range results[len(results)-1].Rows {
		pid, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil {
			return nil, err
		}
		at, err := strconv.ParseInt(string(row[1]), 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, semaphore.Backend{PID: uint32(pid), Start: at})
	}
	return out, nil
}
