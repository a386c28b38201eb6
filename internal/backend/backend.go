// Package backend identifies Postgres backends, sees which are gone, and ends those of processes
// that cannot end them themselves.
//
// Every statement uses the simple protocol, without arguments, over the bare connection. So it
// works in each of pgx's query modes, leaves no prepared statement, and no tracer of the user's
// sees it. Only numbers are inserted into the statements.
package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/passbuddy/passbuddy/internal/allotment"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// start is backend_start in microseconds, the precision that Postgres keeps.
	start = `(extract(epoch from backend_start) * 1000000)::bigint`
	// server adds a row to those of the backends: the start time of the server.
	server = `select 0, ` +
		`(extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint`

	// goneTimeout bounds how long End waits for backends to end. Ending takes milliseconds, but a
	// slow disk can hold a backend up.
	goneTimeout = 3 * time.Second
	minPause    = time.Millisecond
	maxPause    = 50 * time.Millisecond
)

// Of returns the backend of pc. It runs one query, as pc's first use. A pooler at the other end is
// an error: a backend behind a pooler serves other clients too, so we must not end it.
func Of(ctx context.Context, pc *pgconn.PgConn) (b allotment.Backend, err error) {
	rows, at, err := ofServer(ctx, pc, `select pid, `+start+
		` from pg_catalog.pg_stat_activity where pid = pg_backend_pid()`)
	switch {
	case err != nil:
		err = fmt.Errorf("passbuddy: Config.Fence: asking for the backend of a new connection: %w",
			err)
	case len(rows) != 1 || rows[0].Start == 0:
		err = errors.New("passbuddy: Config.Fence: " +
			"pg_stat_activity does not show a new connection's own backend")
	case rows[0].PID != pc.PID():
		err = fmt.Errorf("passbuddy: Config.Fence: the connection to backend %d goes through a "+
			"pooler, which calls it %d: Fence needs connections to Postgres itself",
			rows[0].PID, pc.PID())
	default:
		b = rows[0]
		b.Server = at
	}
	return b, err
}

// End has Postgres end the given backends, and reports which are gone. The pid, the start and the
// role that pc logged in with must all match, so End spares a new backend with a reused pid. A live
// backend that we may not end, or not see, is not gone.
//
// A backend can end by itself between the query's check and the signal. The system reuses its pid
// only after all others, so the signal hits no other process.
func End(ctx context.Context, pc *pgconn.PgConn, backends []allotment.Backend) (gone []bool) {
	gone = make([]bool, len(backends))
	if len(backends) == 0 {
		return gone
	}
	pairs := make([]string, len(backends))
	for i, b := range backends {
		pairs[i] = fmt.Sprintf("(%d,%d)", b.PID, b.Start)
	}
	// After an error some backends may live on; Gone then tells which.
	_, _ = query(ctx, pc,
		`select count(pg_catalog.pg_terminate_backend(pid)), 0 from pg_catalog.pg_stat_activity
		where usename = session_user and pid <> pg_backend_pid() and (pid, `+start+`) in (`+
			strings.Join(pairs, ",")+`)`)

	err := watch(ctx, pc, backends, func(alive []allotment.Backend) (left int) {
		for i, b := range backends {
			gone[i] = !isAmong(b, alive)
			// else it is our own: its owner lost the lease and is about to close it
			if !gone[i] && b.PID != pc.PID() {
				left++
			}
		}
		return left
	})
	if err != nil {
		return make([]bool, len(backends))
	}
	return gone
}

// watch shows what lives of the given backends, again and again, until none is left to wait for,
// for goneTimeout at most.
func watch(
	ctx context.Context, pc *pgconn.PgConn, backends []allotment.Backend,
	show func(alive []allotment.Backend) (left int),
) error {
	deadline := time.Now().Add(goneTimeout)
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		alive, err := query(ctx, pc, shows(backends))
		if err != nil {
			return err
		}
		if show(alive) == 0 || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// Gone reports which of the given backends are gone, and ends none. A backend of a server with
// another start time is not gone: pc may be connected to another Postgres, which never had it.
func Gone(ctx context.Context, pc *pgconn.PgConn, backends []allotment.Backend) (gone []bool) {
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

// shows queries all rows with one of the pids. Another role's backend_start is null for us.
func shows(backends []allotment.Backend) string {
	pids := make([]string, len(backends))
	for i, b := range backends {
		pids[i] = fmt.Sprint(b.PID)
	}
	return `select pid, coalesce(` + start +
		`, 0) from pg_catalog.pg_stat_activity where pid in (` + strings.Join(pids, ",") + `)`
}

// isAmong reports whether b may be one of the backends that the server shows.
func isAmong(b allotment.Backend, alive []allotment.Backend) bool {
	return slices.ContainsFunc(alive, func(other allotment.Backend) bool {
		return other.PID == b.PID && (other.Start == b.Start || other.Start == 0)
	})
}

// ofServer is query, and also returns the start time of the server.
func ofServer(ctx context.Context, pc *pgconn.PgConn,
	sql string) (rows []allotment.Backend, at int64, err error) {
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

// query runs a statement that returns pairs of numbers. It resets the role first: the user may have
// left the connection in another role, which may lack the rights to see or end backends.
func query(ctx context.Context, pc *pgconn.PgConn, sql string) ([]allotment.Backend, error) {
	results, err := pc.Exec(ctx, "set local role none; "+sql).ReadAll()
	if err != nil {
		return nil, err
	}
	var out []allotment.Backend
	for _, row := range results[len(results)-1].Rows {
		pid, err := strconv.ParseUint(string(row[0]), 10, 32)
		if err != nil {
			return nil, err
		}
		at, err := strconv.ParseInt(string(row[1]), 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, allotment.Backend{PID: uint32(pid), Start: at})
	}
	return out, nil
}
