// Package backend knows one Postgres backend from another, and ends those of processes that cannot do it themselves.
//
// Everything goes by the simple protocol and without arguments, over the bare connection: so it works in each of pgx's query modes, leaves
// no prepared statement, and no tracer of the user's sees it. What is written into the statements are numbers.
package backend

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/passbuddy/passbuddy/semaphore"
)

// start is backend_start in microseconds, which is as exact as Postgres keeps it.
const start = `(extract(epoch from backend_start) * 1000000)::bigint`

const (
	// goneMost bounds how long End waits for backends to end: to do so takes milliseconds, but one can be held up by its disk.
	goneMost = 3 * time.Second
	pauseMin = time.Millisecond
	pauseMax = 50 * time.Millisecond
)

// Of returns the backend of pc. It asks it one query, and is for pc's first use. It is an error if the server at the other end
// is not the backend itself: one behind a pooler serves others too, and is not ours to end.
func Of(ctx context.Context, pc *pgconn.PgConn) (semaphore.Backend, error) {
	rows, err := query(ctx, pc, `select pid, `+start+` from pg_catalog.pg_stat_activity where pid = pg_backend_pid()`)
	if err != nil {
		return semaphore.Backend{}, fmt.Errorf("passbuddy: Config.Fence: asking for the backend of a new connection: %w", err)
	}
	if len(rows) != 1 || rows[0].Start == 0 {
		return semaphore.Backend{}, errors.New("passbuddy: Config.Fence: pg_stat_activity does not show a new connection's own backend")
	}
	if b := rows[0]; b.PID != pc.PID() {
		return semaphore.Backend{}, fmt.Errorf("passbuddy: Config.Fence: the connection to backend %d goes through a pooler, which calls it %d: "+
			"Fence needs connections to Postgres itself", b.PID, pc.PID())
	}
	return rows[0], nil
}

// End has Postgres end those backends, and reports which are gone. pid and start must both match, so a pid that was used again is not
// touched; and so must the role that pc has logged in with. One that is alive and not ours to end, or to see, is not gone.
//
// Between the look and the signal a backend can end by itself. Its pid is then used again only after all others were: no other process is hit.
func End(ctx context.Context, pc *pgconn.PgConn, backends []semaphore.Backend) (gone []bool) {
	gone = make([]bool, len(backends))
	if len(backends) == 0 {
		return gone
	}
	pids, pairs := make([]string, len(backends)), make([]string, len(backends))
	for i, b := range backends {
		pids[i] = strconv.FormatUint(uint64(b.PID), 10)
		pairs[i] = "(" + pids[i] + "," + strconv.FormatInt(b.Start, 10) + ")"
	}
	// An error is no more than that some may live on: the look tells.
	_, _ = query(ctx, pc, `select count(pg_catalog.pg_terminate_backend(pid)), 0 from pg_catalog.pg_stat_activity
		where usename = session_user and pid <> pg_backend_pid() and (pid, `+start+`) in (`+strings.Join(pairs, ",")+`)`)

	// Another role's backend_start is null for us.
	look := `select pid, coalesce(` + start + `, 0) from pg_catalog.pg_stat_activity where pid in (` + strings.Join(pids, ",") + `)`
	deadline := time.Now().Add(goneMost)
	for pause := pauseMin; ; pause = min(2*pause, pauseMax) {
		alive, err := query(ctx, pc, look)
		if err != nil {
			return make([]bool, len(backends))
		}
		left := 0
		for i, b := range backends {
			gone[i] = true
			for _, other := range alive {
				if other == b || other.PID == b.PID && other.Start == 0 {
					gone[i] = false
					if other.PID != pc.PID() { // our own: whoever lost its lease is about to close it
						left++
					}
				}
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

// query runs a statement that returns pairs of numbers. The user may have left the connection in another role than it logged in with, which may
// not see or end what this one may.
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
