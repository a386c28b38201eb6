package passbuddy

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"time"
)

// A randomUser uses a DB repeatedly, in random ways, with a deadline every fourth time.
type randomUser struct {
	db    *sql.DB
	st    *sql.Stmt // of the DB; the user leaves it open
	dice  *rand.Rand
	check func(err error) // gets the result of each call, even nil

	open []*sql.Stmt // left open
}

type randomUse func(u *randomUser, ctx context.Context)

func (u *randomUser) run(times int, uses ...randomUse) {
	for range times {
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if u.dice.IntN(4) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(u.dice.IntN(20))*time.Millisecond)
		}
		uses[u.dice.IntN(len(uses))](u, ctx)
		cancel()
		u.pause()
	}
}

func (u *randomUser) pause() { time.Sleep(time.Duration(u.dice.IntN(10)) * time.Millisecond) }

// basicUses are for any DB.
var basicUses = []randomUse{
	(*randomUser).exec, (*randomUser).query, (*randomUser).statement, (*randomUser).transaction,
	(*randomUser).conn, (*randomUser).bad,
}

func (u *randomUser) exec(ctx context.Context) {
	_, err := u.db.ExecContext(ctx, "x", u.dice.IntN(9))
	u.check(err)
}

func (u *randomUser) query(ctx context.Context) {
	rows, err := u.db.QueryContext(ctx, "x")
	u.check(err)
	if err == nil {
		u.pause()
		_ = rows.Close()
	}
}

func (u *randomUser) statement(ctx context.Context) {
	_, err := u.st.ExecContext(ctx)
	u.check(err)
}

func (u *randomUser) transaction(ctx context.Context) {
	tx, err := u.db.BeginTx(ctx, nil)
	u.check(err)
	if err == nil {
		u.pause()
		u.end(tx)
	}
}

// preparedTransaction lets database/sql close its statement.
func (u *randomUser) preparedTransaction(ctx context.Context) {
	tx, err := u.db.BeginTx(ctx, nil)
	u.check(err)
	if err != nil {
		return
	}
	own, err := tx.PrepareContext(ctx, "x")
	u.check(err)
	if err == nil {
		_, err = own.ExecContext(ctx)
		u.check(err)
	}
	u.pause()
	u.end(tx)
}

func (u *randomUser) end(tx *sql.Tx) {
	if u.dice.IntN(2) == 0 {
		u.check(tx.Rollback())
	} else {
		u.check(tx.Commit())
	}
}

// withConn calls use with a connection; use closes it.
func (u *randomUser) withConn(ctx context.Context, use func(c *sql.Conn)) {
	c, err := u.db.Conn(ctx)
	u.check(err)
	if err == nil {
		use(c)
	}
}

func (u *randomUser) conn(ctx context.Context) {
	u.withConn(ctx, func(c *sql.Conn) {
		u.pause()
		_, err := c.ExecContext(ctx, "x")
		u.check(err)
		_ = c.Close()
	})
}

// bad returns a bad connection to the pool.
func (u *randomUser) bad(ctx context.Context) { u.withConn(ctx, discard) }

// outlivingStatement closes a statement after the return of its connection.
func (u *randomUser) outlivingStatement(ctx context.Context) {
	u.withConn(ctx, func(c *sql.Conn) {
		own, err := c.PrepareContext(ctx, "x")
		u.check(err)
		_ = c.Close()
		u.pause()
		if own != nil {
			_ = own.Close()
		}
	})
}

// rawAndStatement bypasses the wrapper in both possible ways.
func (u *randomUser) rawAndStatement(ctx context.Context) {
	u.withConn(ctx, func(c *sql.Conn) {
		u.check(c.Raw(func(dc any) error { _ = dc.(RawConn).Raw(); return nil }))
		own, err := c.PrepareContext(ctx, "x")
		u.check(err)
		if err == nil {
			_, err = own.ExecContext(ctx)
			u.check(err)
			_ = own.Close()
		}
		_ = c.Close()
	})
}

// openStatement prepares a statement of the DB and leaves it open. Closing the statement waits for
// the lock of each connection that it was prepared on. ResetSession holds that lock while it waits
// for a permit, and fake time stops while a goroutine waits for a lock.
func (u *randomUser) openStatement(ctx context.Context) {
	own, err := u.db.PrepareContext(ctx, "x")
	u.check(err)
	if err == nil {
		_, err = own.ExecContext(ctx)
		u.check(err)
		u.open = append(u.open, own)
	}
}
